package journal

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// An Entry is one operation of the history: its first and last line.
type Entry struct {
	ID        string          `json:"id"`
	First     json.RawMessage `json:"first"`
	Last      json.RawMessage `json:"last"`
	Truncated int             `json:"truncated,omitempty"` // lines that cannot be read
}

const historySuffix = ".jsonl"

func (j Journal) historyDir() string { return filepath.Join(j.Dir, "history") }

func (j Journal) historyPath(id string) (string, error) {
	return filepath.Join(j.historyDir(), id+historySuffix), checkID(id)
}

// Create begins the history of an operation: one JSON object a line. The lines are on the disk
// when it returns. An operation that is there already is fs.ErrExist.
func (j Journal) Create(id string, lines ...[]byte) error {
	path, err := j.historyPath(id)
	if err != nil {
		return err
	}
	f, err := create(path, os.O_RDWR|os.O_APPEND|os.O_EXCL)
	if err != nil {
		return fmt.Errorf("begin the history: %w", err)
	}
	err = appendLines(f, lines)
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		_ = os.Remove(path)
		return fmt.Errorf("begin the history: %w", err)
	}
	return nil
}

// Append adds lines to the history of an operation, and returns when they are on the
// disk. If the file was removed, that is ErrGone: it is not begun anew without its beginning.
func (j Journal) Append(id string, lines ...[]byte) error {
	path, err := j.historyPath(id)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %s was removed", ErrGone, path)
	}
	if err == nil {
		err = appendLines(f, lines)
	}
	if err != nil {
		return fmt.Errorf("write the history: %w", err)
	}
	return nil
}

// appendLines writes and syncs lines, and closes f. If they cannot be written whole, f is cut back
// to what it was. After a line that a crash has truncated, they start on a line of their own.
func appendLines(f *os.File, lines [][]byte) (err error) {
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	var b bytes.Buffer
	last := []byte{'\n'}
	if info.Size() > 0 {
		if _, err := f.ReadAt(last, info.Size()-1); err != nil {
			return err
		}
	}
	if last[0] != '\n' {
		b.WriteByte('\n')
	}
	for _, line := range lines {
		if err := json.Compact(&b, line); err != nil {
			return fmt.Errorf("not a line of JSON: %w", err)
		}
		b.WriteByte('\n')
	}
	_, err = f.Write(b.Bytes())
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		if cut := f.Truncate(info.Size()); cut != nil {
			err = fmt.Errorf("%w (and it could not be cut back: %w)", err, cut)
		}
	}
	return err
}

// List is the history, oldest first. A file without a readable line is named in unreadable.
func (j Journal) List(ctx context.Context) (entries []Entry, unreadable []string, err error) {
	ids, err := j.ids()
	if err != nil {
		return nil, nil, err
	}
	for _, id := range ids {
		if ctx.Err() != nil {
			return nil, nil, context.Cause(ctx)
		}
		lines, truncated, err := j.Read(id)
		switch {
		case errors.Is(err, fs.ErrNotExist): // pruned a moment ago
		case errors.Is(err, fs.ErrPermission):
			return nil, nil, err
		case err != nil || len(lines) == 0:
			unreadable = append(unreadable, filepath.Join(j.historyDir(), id+historySuffix))
		default:
			entries = append(entries, Entry{id, lines[0], lines[len(lines)-1], truncated})
		}
	}
	return entries, unreadable, nil
}

// Read is the lines of one operation. Those that are no JSON object, as a crash or a full disk
// leaves them, are left out and counted. A missing operation is fs.ErrNotExist.
func (j Journal) Read(id string) (lines []json.RawMessage, truncated int, err error) {
	path, err := j.historyPath(id)
	if err != nil {
		return nil, 0, err
	}
	b, err := readFile(path)
	if err != nil {
		return nil, 0, fmt.Errorf("read the history: %w", err)
	}
	lines, truncated = parseLines(b)
	return lines, truncated, nil
}

// parseLines reads JSON objects, one a line. A line that does not end is truncated.
func parseLines(b []byte) (lines []json.RawMessage, truncated int) {
	for line := range bytes.Lines(b) {
		text := bytes.TrimSpace(line)
		switch {
		case len(text) == 0:
		case line[len(line)-1] == '\n' && text[0] == '{' && json.Valid(text):
			lines = append(lines, text)
		default:
			truncated++
		}
	}
	return lines, truncated
}

// pruneBatch is how many operations one Prune removes at most, so that none is held up by a long
// history: the next one goes on.
const pruneBatch = 1000

// Prune removes the oldest operations of the history: those beyond Keep and those older
// than MaxAge, but none that stands. It goes by the names alone, and leaves those that NewID has
// not made.
func (j Journal) Prune(standing func(id string) bool) error {
	ids, err := j.ids()
	if err != nil {
		return err
	}
	keep := j.Keep
	if keep <= 0 {
		keep = DefaultKeep
	}
	excess, oldest := len(ids)-keep, time.Now().Add(-MaxAge).UTC().Format(idTime)
	removed := 0
	for i, id := range ids {
		if removed == pruneBatch || i >= excess && id >= oldest {
			break
		}
		if !datedID.MatchString(id) || standing(id) {
			continue
		}
		if err := os.Remove(filepath.Join(j.historyDir(), id+historySuffix)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("prune the history: %w", err)
		}
		removed++
	}
	return nil
}

// ids names the operations of the history, oldest first.
func (j Journal) ids() ([]string, error) {
	dir, err := os.Open(j.historyDir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the history: %w", err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("read the history: %w", err)
	}
	var ids []string
	for _, name := range names {
		if id, ok := strings.CutSuffix(name, historySuffix); ok && checkID(id) == nil {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids, nil
}
