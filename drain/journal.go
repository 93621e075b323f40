package drain

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/drainctl/drainctl/nginx"
	"github.com/drainctl/drainctl/remote"
)

// DefaultStateDir is where the journal and the locks of a load balancer are.
const DefaultStateDir = "/var/lib/drainctl"

// journalVersion is the format's. A reader refuses a later one.
const journalVersion = 1

// journalSuffix ends the name of an operation's file: one JSON object a line.
const journalSuffix = ".jsonl"

// A RecordKind says what a record is.
type RecordKind string

// The kinds. A begin is the first record of a file and an end the last; an edit
// and a step's start are written and synced before what they announce.
const (
	RecordBegin RecordKind = "begin"
	RecordEdit  RecordKind = "edit"
	RecordStart RecordKind = "start"
	RecordDone  RecordKind = "done"
	RecordFail  RecordKind = "fail"
	RecordBack  RecordKind = "rolling back"
	RecordEnd   RecordKind = "end"
)

// A Record is one line of the journal.
type Record struct {
	Version int        `json:"v"`
	Kind    RecordKind `json:"record"`
	Time    time.Time  `json:"time"`

	Begin *Begin  `json:"begin,omitempty"`
	Edit  *Edited `json:"edit,omitempty"`
	End   *End    `json:"end,omitempty"`

	Step    StepName `json:"step,omitempty"`
	Way     Way      `json:"way,omitempty"`
	Changed bool     `json:"changed,omitempty"`
	Text    string   `json:"text,omitempty"`
	Error   string   `json:"error,omitempty"`
}

// A Begin is who wants what, and all that is needed to go on or to take it
// back from another machine. It holds no secret: a key is named, not held.
type Begin struct {
	ID        string    `json:"id"`
	Operation Operation `json:"operation"`
	Target    string    `json:"target"`
	Upstreams []string  `json:"upstreams,omitempty"`
	User      string    `json:"user"`
	Host      string    `json:"host"`
	Reason    string    `json:"reason,omitempty"`
	Continues string    `json:"continues,omitempty"` // ID of the operation this one resumes
	Conf      string    `json:"configuration"`
	Servers   []Marked  `json:"servers"`
	Settings  Settings  `json:"settings"`
}

// Settings are the flags of an operation that its resuming or its undrain
// needs.
type Settings struct {
	Service   string        `json:"service,omitempty"`
	SSHHost   string        `json:"ssh_host,omitempty"`
	SSHUser   string        `json:"ssh_user,omitempty"`
	SSHPort   int           `json:"ssh_port,omitempty"`
	Identity  string        `json:"identity,omitempty"`
	Poll      Poll          `json:"poll,omitempty"`
	StatusURL string        `json:"status_url,omitempty"`
	Threshold int           `json:"threshold,omitempty"`
	Interval  time.Duration `json:"interval_ns,omitempty"`
	Timeout   time.Duration `json:"timeout_ns"`
	OnTimeout OnTimeout     `json:"on_timeout,omitempty"`
	MinUp     int           `json:"min_up"`
	Allow     Allow         `json:"allow"`
	Health    string        `json:"health,omitempty"`
	HealthFor time.Duration `json:"health_timeout_ns"`

	StopTimeout time.Duration  `json:"stop_timeout_ns,omitempty"`
	IgnorePeers []netip.Prefix `json:"ignore_peers,omitempty"`

	// How nginx is run, where the operator has said so.
	Nginx         string   `json:"nginx,omitempty"`
	TestCommand   []string `json:"test_command,omitempty"`
	ReloadCommand []string `json:"reload_command,omitempty"`
}

// A Marked is one server line, named so that it is found again when the file
// has moved on.
type Marked struct {
	Module   string `json:"module"`
	Upstream string `json:"upstream"`
	Address  string `json:"address"`
	Down     bool   `json:"down"` // as the operation found it
	File     string `json:"file,omitempty"`
	Line     int    `json:"line,omitempty"`
	Offset   int    `json:"offset"`         // where bytes are inserted or taken away
	Text     string `json:"text,omitempty"` // the bytes inserted; empty when they are taken away
}

func (m Marked) key() string { return m.Module + "\x00" + m.Upstream + "\x00" + m.Address }

// An Edited announces the replacement of one file.
type Edited struct {
	Path   string   `json:"path"`
	Before string   `json:"sha256_before"`
	After  string   `json:"sha256_after"`
	Marks  []Marked `json:"marks"`
}

// An End is how an operation ended.
type End struct {
	ExitCode int    `json:"exit_code"`
	Result   string `json:"result"`
	Stands   string `json:"stands,omitempty"`
}

// The results of an operation.
const (
	ResultDone       = "done"
	ResultRolledBack = "rolled back"
	ResultLeft       = "left"
)

// A journal is the operations of one load balancer, in a directory on it.
type journal struct {
	host remote.Host
	dir  string
}

func (j journal) file(id string) string { return path.Join(j.dir, "operations", id+journalSuffix) }

// idTime is how the name of an operation begins.
const idTime = "20060102-150405.000"

// newID names an operation by the time it began, so that names sort as the
// operations followed each other, and by chance, so that two never share one.
// A clock that was set back does not put it before the latest there is.
func newID(now time.Time, latest string) string {
	if len(latest) > len(idTime) {
		if t, err := time.Parse(idTime, latest[:len(idTime)]); err == nil && now.Sub(t) < time.Millisecond {
			now = t.Add(time.Millisecond)
		}
	}
	return now.UTC().Format(idTime) + "-" + strings.ToLower(rand.Text()[:4])
}

// write appends a record and returns when it is on the disk.
func (j journal) write(ctx context.Context, id string, r Record) error {
	r.Version = journalVersion
	r.Time = time.Now()
	line, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	if err := j.host.Append(ctx, j.file(id), append(line, '\n')); err != nil {
		return fmt.Errorf("write the journal %s on %s: %w", j.file(id), j.host.Name(), err)
	}
	return nil
}

// there fails where the file of an operation is gone: another one would be begun by
// the next record, without the beginning, which nobody could go on from.
func (j journal) there(ctx context.Context, id string) error {
	_, err := j.host.Stat(ctx, j.file(id))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the journal of this operation is gone: somebody has removed %s on %s", j.file(id), j.host.Name())
	}
	return err
}

// A Recorded is one operation as the journal has it.
type Recorded struct {
	Begin
	Began   time.Time
	Records []Record
	End     *End // nil: it has not ended, or did not live to say so
	Ended   time.Time
	// Torn is how many lines could not be read: a record that a crash or a full
	// disk has cut short. They are set aside.
	Torn int
}

// Who is the operation's author, for a message.
func (o *Recorded) Who() string {
	why := ""
	if o.Reason != "" {
		why = fmt.Sprintf(", %q", o.Reason)
	}
	return fmt.Sprintf("%s on %s, %s%s", o.User, o.Host, o.Began.Local().Format("2006-01-02 15:04:05"), why)
}

// Unfinished tells whether the operation has not ended, or has left things
// part-done.
func (o *Recorded) Unfinished() bool { return o.End == nil || o.End.Result == ResultLeft }

// ErrJournalVersion is wrapped when a journal was written by a later drainctl.
var ErrJournalVersion = errors.New("written by a later drainctl; use that one")

// read is all operations, the oldest first. A directory that is not there is an
// empty journal. A file without a readable begin is passed over, and named.
func (j journal) read(ctx context.Context) (all []*Recorded, passedOver []string, err error) {
	names, err := j.host.Glob(ctx, path.Join(j.dir, "operations", "*"+journalSuffix))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil, nil
		}
		return nil, nil, fmt.Errorf("read the journal: %w", err)
	}
	if len(names) == 0 {
		return nil, nil, nil
	}
	contents, err := j.host.ReadFiles(ctx, names)
	if err != nil {
		return nil, nil, fmt.Errorf("read the journal: %w", err)
	}
	for i, b := range contents {
		o, err := parseOperation(b)
		switch {
		case err != nil:
			return nil, nil, fmt.Errorf("read the journal: %s: %w", names[i], err)
		case o.ID == "":
			passedOver = append(passedOver, names[i])
		default:
			all = append(all, o)
		}
	}
	slices.SortStableFunc(all, func(a, b *Recorded) int { return strings.Compare(a.ID, b.ID) })
	return all, passedOver, nil
}

// parseOperation reads one operation's file. Lines that are no records are set
// aside: only the last can be torn by a crash, and one before it when the
// operation went on after a full disk.
func parseOperation(b []byte) (*Recorded, error) {
	o := &Recorded{}
	for line := range bytes.Lines(b) {
		if len(bytes.TrimSpace(line)) == 0 {
			continue
		}
		r, torn, ok := parseRecord(line)
		o.Torn += torn
		if !ok {
			continue
		}
		if r.Version > journalVersion {
			return nil, fmt.Errorf("format %d: %w", r.Version, ErrJournalVersion)
		}
		switch {
		case r.Kind == RecordBegin && r.Begin != nil:
			o.Begin, o.Began = *r.Begin, r.Time
		case r.Kind == RecordEnd && r.End != nil:
			o.End, o.Ended = r.End, r.Time
		}
		o.Records = append(o.Records, r)
	}
	return o, nil
}

// recordStart is how every record begins: Version is its first field.
var recordStart = []byte(`{"v":`)

// parseRecord reads one line. A record that was cut short and that another
// follows on the same line is set aside, and the other is read.
func parseRecord(line []byte) (r Record, torn int, ok bool) {
	if !bytes.HasSuffix(line, []byte("\n")) {
		return Record{}, 1, false
	}
	if json.Unmarshal(line, &r) == nil {
		return r, 0, true
	}
	if i := bytes.LastIndex(line, recordStart); i > 0 {
		r = Record{}
		if json.Unmarshal(line[i:], &r) == nil {
			return r, 1, true
		}
	}
	return Record{}, 1, false
}

// A Mark is a down that drainctl has put on a server.
type Mark struct {
	Marked
	By *Recorded // the operation that put it there
	// lines is where the words were put: an upstream may name a server twice.
	lines []markedLine
}

// Lines is how many lines of the server drainctl has marked.
func (m *Mark) Lines() int { return len(m.lines) }

// A markedLine is one word that an edit was announced to insert.
type markedLine struct {
	by           *Recorded
	path, before string // the file, and its hash before the edit
	offset       int
}

// A Ledger is what the journal says stands. A nil Ledger is that of an empty
// journal.
type Ledger struct {
	Operations []*Recorded
	// PassedOver is the files that hold no operation that could be read: one
	// that did not live to say what it was, and touched nothing.
	PassedOver []string
	marks      map[string]*Mark
	// standing is, by server, the operations on it since it was last put back,
	// the oldest first.
	standing map[string][]*Recorded
}

// readLedger reads the journal and works out what stands.
func (j journal) readLedger(ctx context.Context) (*Ledger, error) {
	all, passedOver, err := j.read(ctx)
	if err != nil {
		return nil, err
	}
	l := NewLedger(all)
	l.PassedOver = passedOver
	return l, nil
}

// NewLedger works out what stands after operations, which are in the order they
// began in. A mark stands from the moment its edit was announced, for it may have
// been written, until the way back was seen to be done.
func NewLedger(all []*Recorded) *Ledger {
	l := &Ledger{Operations: all, marks: map[string]*Mark{}, standing: map[string][]*Recorded{}}
	for _, o := range all {
		for _, s := range o.Servers {
			l.standing[s.key()] = append(l.standing[s.key()], o)
		}
		for _, r := range o.Records {
			switch {
			case r.Kind == RecordEdit && r.Edit != nil:
				l.announce(o, r.Edit)
			case r.Kind == RecordDone && r.Step == StepClose && r.Way == Back:
				l.forget(o)
			}
		}
	}
	return l
}

// announce adds the marks of an edit. What was announced for this file before,
// by the same operation or from the same bytes, was never written: the edit was
// begun anew, or its process died before it.
func (l *Ledger) announce(o *Recorded, e *Edited) {
	for key, m := range l.marks {
		m.lines = slices.DeleteFunc(m.lines, func(line markedLine) bool {
			return line.path == e.Path && (line.by == o || line.before == e.Before)
		})
		if len(m.lines) == 0 {
			delete(l.marks, key)
		}
	}
	for _, marked := range e.Marks {
		if marked.Text == "" {
			continue
		}
		m := l.marks[marked.key()]
		if m == nil {
			m = &Mark{Marked: marked, By: o}
			l.marks[marked.key()] = m
		}
		line := markedLine{by: o, path: e.Path, before: e.Before, offset: marked.Offset}
		if !slices.Contains(m.lines, line) {
			m.lines = append(m.lines, line)
		}
	}
}

// forget drops what the way back of o took away: for an undrain all marks on
// its servers, for a drain that was rolled back its own.
func (l *Ledger) forget(o *Recorded) {
	for _, s := range o.Servers {
		m := l.marks[s.key()]
		if m != nil && o.Operation == Drain {
			m.lines = slices.DeleteFunc(m.lines, func(line markedLine) bool { return line.by == o })
		}
		if m != nil && (o.Operation == Undrain || len(m.lines) == 0) {
			delete(l.marks, s.key())
		}
		if o.Operation == Undrain {
			delete(l.standing, s.key())
		}
	}
}

// Mark is the mark that stands on a server, nil when drainctl has put none
// there.
func (l *Ledger) Mark(s *nginx.Server) *Mark {
	if l == nil {
		return nil
	}
	return l.marks[serverKey(s)]
}

// Standing is the operations on the server since it was last put back, the
// oldest first. A drain that was rolled back is not one of them.
func (l *Ledger) Standing(s *nginx.Server) []*Recorded {
	if l == nil {
		return nil
	}
	return notRolledBack(l.standing[serverKey(s)])
}

func notRolledBack(ops []*Recorded) []*Recorded {
	return slices.DeleteFunc(slices.Clone(ops), func(o *Recorded) bool { return o.End != nil && o.End.Result == ResultRolledBack })
}

// standingOn is the latest operation that stands on each server of a target,
// the oldest first.
func (l *Ledger) standingOn(t nginx.Target) []*Recorded {
	var found []*Recorded
	for _, ops := range l.standing {
		for _, o := range slices.Backward(notRolledBack(ops)) {
			if o.names(t) && !slices.Contains(found, o) {
				found = append(found, o)
			}
			break
		}
	}
	slices.SortFunc(found, func(a, b *Recorded) int { return strings.Compare(a.ID, b.ID) })
	return found
}

// names tells whether the target is one of the operation's servers.
func (o *Recorded) names(t nginx.Target) bool {
	return slices.ContainsFunc(o.Servers, func(m Marked) bool {
		a, err := nginx.ParseAddress(m.Address)
		return err == nil && t.Matches(a)
	})
}

// Latest is the last of Standing, nil if there is none.
func (l *Ledger) Latest(s *nginx.Server) *Recorded {
	ops := l.Standing(s)
	if len(ops) == 0 {
		return nil
	}
	return ops[len(ops)-1]
}

// Ours tells whether a file with this hash is as drainctl's last edit of it
// found it or left it: then nobody else has changed it since, though it may be
// newer than what nginx has loaded, after a crash or a rollback.
func (l *Ledger) Ours(path, sha string) bool {
	if l == nil {
		return false
	}
	// The operation that began last need not be the one that edited last.
	var last Record
	for _, o := range l.Operations {
		for _, r := range o.Records {
			if r.Kind == RecordEdit && r.Edit != nil && r.Edit.Path == path && !r.Time.Before(last.Time) {
				last = r
			}
		}
	}
	return last.Edit != nil && (sha == last.Edit.Before || sha == last.Edit.After)
}

// latest is the ID of the latest operation, empty if there is none.
func (l *Ledger) latest() string {
	if l == nil || len(l.Operations) == 0 {
		return ""
	}
	return l.Operations[len(l.Operations)-1].ID
}
