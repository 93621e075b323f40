package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// record is the file that tells the next lab which processes this one started,
// should this one be killed before it can take itself down.
type record struct {
	mu        sync.Mutex
	path      string
	BootID    string    `json:"boot_id"` // process numbers and start times mean nothing after a reboot
	Processes []process `json:"processes"`
}

func (p place) recordPath() string { return filepath.Join(p.directory(), "processes.json") }

func newRecord(at place) (*record, error) {
	id, err := bootID()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(at.directory(), 0o755); err != nil {
		return nil, fmt.Errorf("directory of the lab: %w", err)
	}
	r := &record{path: at.recordPath(), BootID: id}
	return r, r.write()
}

// add records a process that was started.
func (r *record) add(p process) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Processes = append(r.Processes, p)
	return r.write()
}

func (r *record) write() error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	// A rename, so that a kill in the middle leaves the old record or the new one.
	temporary := r.path + ".new"
	if err := os.WriteFile(temporary, append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("record of the lab's processes: %w", err)
	}
	return os.Rename(temporary, r.path)
}

// recorded reads the processes that the last lab there recorded and that can still run.
func (p place) recorded() ([]process, error) {
	text, err := os.ReadFile(p.recordPath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var r record
	if err := json.Unmarshal(text, &r); err != nil {
		return nil, fmt.Errorf("%s: %w", p.recordPath(), err)
	}
	if id, err := bootID(); err != nil || id != r.BootID {
		return nil, err
	}
	return r.Processes, nil
}

func bootID() (string, error) {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(text)), err
}
