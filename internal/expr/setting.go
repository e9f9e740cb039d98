package expr

import (
	"errors"

	"mnsrelay/internal/setting"
)

// CompileSetting compiles the template in a setting. Its error joins a *setting.Problem of
// path for each problem.
func CompileSetting(path, source string) (*Template, error) {
	t, err := CompileTemplate(source)
	if err != nil {
		return nil, problemsOf(path, err)
	}
	return t, nil
}

// problemsOf takes what compiling reports apart.
func problemsOf(path string, err error) error {
	joined, is := err.(interface{ Unwrap() []error })
	if !is {
		return setting.Problemf(path, "%w", err)
	}
	var problems []error
	for _, err := range joined.Unwrap() {
		problems = append(problems, problemsOf(path, err))
	}
	return errors.Join(problems...)
}
