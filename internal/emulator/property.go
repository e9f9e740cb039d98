package emulator

import (
	"maps"
	"slices"
)

// properties are what a message carries beside its body (MNS: message attributes): those of
// the system, such as traceparent, and the sender's own.
type properties struct{ system, user map[string]string }

// The elements around one property and around all of a kind.
const (
	systemProperties, systemProperty = "SystemProperties", "SystemPropertyValue"
	userProperties, userProperty     = "UserProperties", "PropertyValue"
)

// readProperties reads the element just started: a property in each element of the name.
func readProperties(x *xmlReader, each string) (map[string]string, *wireError) {
	all := make(map[string]string)
	err := x.children(func(name string) *wireError {
		if name != each {
			return schemaError(name)
		}
		var parts struct{ name, value string }
		err := x.children(func(name string) *wireError {
			text, err := x.content()
			switch name {
			case "Name":
				parts.name = string(text)
			case "Value":
				parts.value = string(text)
			}
			return err
		})
		if err == nil && parts.name == "" {
			err = schemaError("a property without a name")
		}
		all[parts.name] = parts.value
		return err
	})
	return all, err
}

// xml writes the properties as a receive tells them.
func (p properties) xml() (b []byte) {
	b = appendProperties(b, systemProperties, systemProperty, p.system)
	return appendProperties(b, userProperties, userProperty, p.user)
}

func appendProperties(b []byte, around, each string, all map[string]string) []byte {
	if len(all) == 0 {
		return b
	}
	b = append(b, "<"+around+">"...)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		b = append(b, "<"+each+">"...)
		b = appendElement(b, "Name", name)
		b = appendElement(b, "Value", all[name])
		b = appendElement(b, "Type", "STRING")
		b = append(b, "</"+each+">"...)
	}
	return append(b, "</"+around+">"...)
}
