package journal

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// An Entry is one operation of the history: its first and last line.
type Entry struct {
	ID        string          `json:"id"`
	Recorder  *Recorder       `json:"recorder,omitempty"` // nil in files of earlier versions
	First     json.RawMessage `json:"first"`
	Last      json.RawMessage `json:"last"`
	Truncated int             `json:"truncated,omitempty"` // lines that cannot be read
}

// A History is what was recorded of one operation.
type History struct {
	Recorder  *Recorder         `json:"recorder,omitempty"` // nil in files of earlier versions
	Lines     []json.RawMessage `json:"lines,omitempty"`
	Truncated int               `json:"truncated,omitempty"` // lines that are no JSON object, as a crash or a full disk leaves them
}

// recorded is the first line of a history. This package alone writes it: the lines after it
// are the caller's.
type recorded struct {
	Event    string    `json:"event"` // recordedEvent
	Recorder *Recorder `json:"recorder"`
}

const recordedEvent = "recorded"

const historySuffix = ".jsonl"

// maxHistory limits the history of one operation, in bytes. Lines beyond it are left out.
const maxHistory = 8 << 20

// The limits for users other than root, in bytes: one line of a history, and all operations of
// a user in the list, as JSON.
const (
	maxLine   = 256 << 10
	maxListed = 8 << 20
)

func (j Journal) historyDir() string { return filepath.Join(j.Dir, "history") }

func (j Journal) historyPath(id string) string {
	return filepath.Join(j.historyDir(), id+historySuffix)
}

// Create creates the history of an operation that r records, with one JSON object per line. The
// lines are on the disk when it returns. The error is fs.ErrExist if there is such a history. A
// line longer than maxLine is an error, unless r is root.
func (j Journal) Create(id string, r Recorder, lines ...json.RawMessage) error {
	first, err := json.Marshal(recorded{recordedEvent, &r})
	if err = errors.Join(err, checkID(id), checkLines(&r, lines)); err != nil {
		return err
	}
	f, err := create(j.historyPath(id), os.O_RDWR|os.O_APPEND|os.O_EXCL)
	if err != nil {
		return fmt.Errorf("begin the history: %w", err)
	}
	err = errors.Join(appendLines(f, append([]json.RawMessage{first}, lines...)), f.Close())
	if err == nil {
		err = syncDir(j.historyDir())
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("begin the history: %w", err)
	}
	return nil
}

// HasHistory reports whether there is a history of an operation.
func (j Journal) HasHistory(id string) bool {
	_, err := os.Lstat(j.historyPath(id))
	return err == nil && checkID(id) == nil
}

// Rename gives the history of an operation another ID, if there is one.
func (j Journal) Rename(id, to string) error {
	if err := errors.Join(checkID(id), checkID(to)); err != nil {
		return err
	}
	err := os.Rename(j.historyPath(id), j.historyPath(to))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Append adds lines to the history of an operation. They are on the disk when it returns. The
// error is ErrGone if the file was removed: Append creates no history without its first lines.
// A line longer than maxLine is an error, unless root recorded the operation.
func (j Journal) Append(id string, lines ...json.RawMessage) error {
	if err := checkID(id); err != nil {
		return err
	}
	path := j.historyPath(id)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %s was removed", ErrGone, path)
	}
	if err == nil {
		if err = checkLines(recorderIn(f), lines); err == nil {
			err = appendLines(f, lines)
		}
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return fmt.Errorf("write the history: %w", err)
	}
	return nil
}

// checkLines refuses lines that are too long for their recorder.
func checkLines(r *Recorder, lines []json.RawMessage) error {
	if !r.isBounded() {
		return nil
	}
	for _, line := range lines {
		if len(line) > maxLine {
			return fmt.Errorf("a line of %d bytes: %s may write lines of %d", len(line), r, maxLine)
		}
	}
	return nil
}

// recorderIn reads the recorder from the first line of a history, nil in a file of an
// earlier version.
func recorderIn(f io.ReaderAt) *Recorder {
	b := make([]byte, 4<<10) // a UID and the name of a user
	n, _ := f.ReadAt(b, 0)
	line, _, _ := bytes.Cut(b[:n], []byte("\n"))
	return recorderOf(line)
}

// recorderOf returns the recorder that the first line of a history names, otherwise nil.
func recorderOf(line []byte) *Recorder {
	var first recorded
	if json.Unmarshal(line, &first) != nil || first.Event != recordedEvent {
		return nil
	}
	return first.Recorder
}

// appendLines writes and syncs lines. If one of them cannot be written, f is truncated to its
// previous size. If a crash has truncated the last line of f, the lines start on a new one.
func appendLines(f *os.File, lines []json.RawMessage) error {
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
		if info.Size()+int64(b.Len()+len(line)) > maxHistory {
			break
		}
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
			err = fmt.Errorf("%w (and truncate it to its previous size: %w)", err, cut)
		}
	}
	return err
}

// List returns all operations of the history, oldest first. Of a user other than root it returns
// the latest ones that fit maxListed. unreadable has the paths of the others, and of the files
// without a readable line.
func (j Journal) List(ctx context.Context) (entries []Entry, unreadable []string, err error) {
	ids, err := j.ids()
	if err != nil {
		return nil, nil, err
	}
	listed := map[uint32]int{} // bytes, by the recorder's UID
	for _, id := range slices.Backward(ids) {
		if ctx.Err() != nil {
			return nil, nil, context.Cause(ctx)
		}
		h, err := j.Read(id)
		if errors.Is(err, fs.ErrNotExist) { // pruned a moment ago
			continue
		}
		if errors.Is(err, fs.ErrPermission) {
			return nil, nil, err
		}
		if err != nil || len(h.Lines) == 0 {
			unreadable = append(unreadable, j.historyPath(id))
			continue
		}
		// Cloned: the lines between them need not stay in memory.
		e := Entry{id, h.Recorder, bytes.Clone(h.Lines[0]), bytes.Clone(h.Lines[len(h.Lines)-1]), h.Truncated}
		if h.Recorder.isBounded() {
			uid, size := h.Recorder.UID, sizeOf(e)
			if listed[uid]+size > maxListed {
				unreadable = append(unreadable, j.historyPath(id))
				continue
			}
			listed[uid] += size
		}
		entries = append(entries, e)
	}
	slices.Reverse(entries)
	slices.Reverse(unreadable)
	return entries, unreadable, nil
}

// Read returns the history of one operation. The error is fs.ErrNotExist if there is none.
func (j Journal) Read(id string) (h History, err error) {
	if err := checkID(id); err != nil {
		return h, err
	}
	b, err := readFile(j.historyPath(id))
	if err != nil {
		return h, fmt.Errorf("read the history: %w", err)
	}
	h.Lines, h.Truncated = parseLines(b)
	if len(h.Lines) > 0 {
		if h.Recorder = recorderOf(h.Lines[0]); h.Recorder != nil {
			h.Lines = h.Lines[1:]
		}
	}
	return h, nil
}

// parseLines reads one JSON object per line. A line without a line end is truncated.
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

const (
	// pruneBatch limits the operations that one Prune removes, and so its time.
	pruneBatch = 1000
	// maxHistories limits the size of all histories together, in bytes.
	maxHistories = 256 << 20
)

// Prune removes the oldest operations of the history: those beyond Keep and maxHistories, and
// those older than MaxAge. It keeps operations that are in the state, and files whose names are
// no IDs of NewID.
func (j Journal) Prune(isInState func(id string) bool) error {
	ids, err := j.ids()
	if err != nil {
		return err
	}
	keep := j.Keep
	if keep <= 0 {
		keep = DefaultKeep
	}
	excess, oldest := max(len(ids)-keep, j.excess(ids)), time.Now().Add(-MaxAge).UTC().Format(idTime)
	removed := 0
	for i, id := range ids {
		if removed == pruneBatch || i >= excess && id >= oldest {
			break
		}
		if !datedID.MatchString(id) || isInState(id) {
			continue
		}
		if err := os.Remove(j.historyPath(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("prune the history: %w", err)
		}
		removed++
	}
	return nil
}

// excess returns how many of the oldest histories have to be removed to fit maxHistories.
func (j Journal) excess(ids []string) int {
	var total int64
	for i, id := range slices.Backward(ids) {
		if info, err := os.Lstat(j.historyPath(id)); err == nil {
			total += info.Size()
		}
		if total > maxHistories {
			return i + 1
		}
	}
	return 0
}

// ids returns the IDs of the operations in the history, oldest first.
func (j Journal) ids() ([]string, error) {
	ids, err := namesIn(j.historyDir(), historySuffix)
	if err != nil {
		return nil, fmt.Errorf("read the history: %w", err)
	}
	ids = slices.DeleteFunc(ids, func(id string) bool { return checkID(id) != nil })
	slices.Sort(ids)
	return ids, nil
}
