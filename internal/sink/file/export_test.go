package file

// Escape is what a value in a template becomes.
func Escape(value string) string { return escape(value) }
