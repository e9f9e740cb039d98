// Package expr is the language of the configuration: CEL (the Common Expression
// Language) in conditions, and {{ }} templates that hold CEL.
//
// # Variables
//
//	id           string               the message's id
//	source       string               the name of its source
//	queue        string               the name of its queue
//	text         string               the body; bytes that are not UTF-8 are U+FFFD
//	body         dyn                  the body as JSON
//	attempt      int                  how often it was received, this time included
//	enqueued_at  timestamp            when the queue accepted it
//	attributes   map(string, string)  what is known beside the body
//
// The body is taken apart at the first use of body, once for all expressions that are
// given the same Input. Integers of JSON are CEL ints within int64; what is larger, has
// a fraction or an exponent is a double. Where the body is not JSON, a use of body is an
// error; has(body.x) is one too, while on JSON without x it is false.
//
// # Functions
//
// Beside the standard ones: optional values (body.?x.orValue("none")), and CEL's
// extensions for strings (replace, split, lowerAscii, substring, format...), math
// (math.greatest...) and encoders (base64.encode, base64.decode, json.encode). Time
// zones default to UTC. Regular expressions are RE2: their time is linear in the text.
//
// # Templates
//
// Text outside of {{ }} is itself, inside is one expression; }} within its strings, maps
// and comments does not end it. A literal {{ is written {{ "{{" }}. A value becomes text
// as string() makes it, and:
//
//   - null and an optional without a value are empty; write body.?x for a member that
//     may be missing
//   - a number that is only selected from the body is written with the digits it has
//     there, so that 12345678901234567890 and 1.10 stay what they are
//   - an object or array of the body is its JSON, without white space between tokens; a
//     list or map that the expression made needs json.encode(...) around it
//   - bytes have to be UTF-8
//
// # Limits
//
// Expressions are type-checked when they are compiled. One evaluation may cost CostLimit.
// What could make large things of small ones without cost has to be a literal: the
// pattern of matches, the replacement of replace, the separator of join. There is no
// limit in time: the outcome of a message must not depend on how busy the machine is,
// and the cost bounds the time well enough.
//
// Errors of an evaluation quote the expression and never a value.
package expr
