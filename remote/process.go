package remote

import (
	"bufio"
	"context"
	"io"
	"sync"
)

// machine is what the file operations and locks need of a host.
type machine interface {
	Name() string
	User() string
	Run(ctx context.Context, c Command) (Result, error)
	start(ctx context.Context, c Command) (*process, error)
	isRoot(ctx context.Context) (bool, error)
}

// process is a running command that is talked to: its input is written, its
// output comes line by line.
type process struct {
	stdin io.WriteCloser
	kill  func()
	lines chan string   // its output; closed at its end
	done  chan struct{} // closed when it has ended
	once  sync.Once

	// Valid once done is closed.
	code   int
	stderr []byte
	err    error // its end is not known
}

func newProcess(stdin io.WriteCloser, kill func()) *process {
	// A few lines are all that such a process says; room for them lets
	// it end without a reader.
	return &process{stdin: stdin, kill: kill, lines: make(chan string, 16), done: make(chan struct{})}
}

// scan passes on the lines of stdout until its end.
func (p *process) scan(stdout io.Reader) {
	s := bufio.NewScanner(stdout)
	for s.Scan() {
		select {
		case p.lines <- s.Text():
		default: // nobody listens
		}
	}
	_, _ = io.Copy(io.Discard, stdout)
	close(p.lines)
}

// end tells how the process ended.
func (p *process) end(code int, stderr []byte, err error) {
	p.once.Do(func() {
		p.code, p.stderr, p.err = code, stderr, err
		close(p.done)
	})
}
