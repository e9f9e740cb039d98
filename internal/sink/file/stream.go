package file

import "io"

// stream is standard output: there is nothing to open and nothing to sync.
type stream struct {
	w io.Writer
	// torn says that the last write ended within a line.
	torn bool
}

func (s *stream) write(_ string, lines []byte) error {
	if s.torn {
		lines = append([]byte{'\n'}, lines...)
	}
	n, err := s.w.Write(lines)
	if n > 0 {
		s.torn = lines[n-1] != '\n'
	}
	return err
}

func (s *stream) close() error { return nil }
