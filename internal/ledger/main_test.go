package ledger_test

import (
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// lingering is how long the client of Redis may go on connecting after it was closed.
const lingering = 5 * time.Second

func TestMain(m *testing.M) {
	code := m.Run()
	if code == 0 {
		err := goleak.Find()
		for begun := time.Now(); err != nil && time.Since(begun) < lingering; {
			err = goleak.Find()
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}
