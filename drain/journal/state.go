package journal

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"
	"unicode/utf8"
)

// stateVersion is the format's.
const stateVersion = 2

// A State is what stands on a load balancer. Its methods are pure: Journal.Update makes
// a change durable.
type State struct {
	Version int    `json:"version"`
	LastID  string `json:"last_id,omitempty"` // the latest there ever was
	// Operations are those that have not ended, and those that have and are not undone yet,
	// in the order in which they began here.
	Operations []Operation           `json:"operations,omitempty"`
	Marks      []Mark                `json:"marks,omitempty"`
	Edits      map[string]FileHashes `json:"edits,omitempty"` // by path, drainctl's last edit
}

// FileHashes are the SHA-256, in hex, of a file before and after an edit.
type FileHashes struct {
	Before string `json:"sha256_before"`
	After  string `json:"sha256_after"`
}

// A Server names server lines so that they are found again when the file has moved on.
type Server struct {
	Module   string `json:"module"` // "http" or "stream"
	Upstream string `json:"upstream"`
	Address  string `json:"address"`
}

// A Located is a server line as an operation found it.
type Located struct {
	Server
	File string `json:"file"`
	Line int    `json:"line"` // from 1
	Down bool   `json:"down,omitempty"`
}

// The kinds of an operation.
const (
	KindDrain   = "drain"
	KindUndrain = "undrain"
	KindRun     = "run"    // a rolling run: some servers at a time, there and back
	KindForget  = "forget" // of servers that are no longer in the configuration
)

// A Result is how an operation ended. Empty: it has not ended, or did not live to say so.
type Result string

// The results.
const (
	ResultDone       Result = "done"
	ResultRolledBack Result = "rolled back"
	ResultPartial    Result = "partial"
	ResultNotDrained Result = "not drained" // down, not drained, the app running
)

// An Operation is who wants what, and what was done for it on this load balancer.
type Operation struct {
	ID      string   `json:"id"`
	Kind    string   `json:"kind"`
	Targets []string `json:"targets"`
	// Conf is the main file of the configuration that it is about: an LB may have several nginx. It is
	// empty in journals of earlier versions, and is then about each.
	Conf string `json:"configuration,omitempty"`
	// Recorder is who began it, as this LB saw it; nil in journals of earlier versions.
	Recorder *Recorder       `json:"recorder,omitempty"`
	User     string          `json:"user"` // as the caller says
	Host     string          `json:"host"`
	Reason   string          `json:"reason,omitempty"`
	Began    time.Time       `json:"began"`
	Spec     json.RawMessage `json:"spec,omitempty"` // what was asked; not looked into here
	Servers  []Located       `json:"servers,omitempty"`
	Result   Result          `json:"result,omitempty"`
	Ended    time.Time       `json:"ended,omitzero"`
	Open     int             `json:"open,omitempty"` // connections when it ended
	// NotDrained are the servers that have them, where others have none; none: all.
	NotDrained []Server        `json:"not_drained,omitempty"`
	Progress   json.RawMessage `json:"progress,omitempty"` // how far each backend is; not looked into here
}

// Covers tells whether the operation is on this server.
func (o *Operation) Covers(s Server) bool {
	return slices.ContainsFunc(o.Servers, func(l Located) bool { return l.Server == s })
}

// Unfinished tells whether the operation has not ended, or has left something to do.
func (o *Operation) Unfinished() bool {
	return o.Result == "" || o.Result == ResultPartial || o.Result == ResultNotDrained
}

// An Edit is the replacement of one file. Its inverse is in the splices.
type Edit struct {
	Path    string   `json:"path"`
	Before  string   `json:"sha256_before"`
	After   string   `json:"sha256_after"`
	Splices []Splice `json:"splices"`
}

// A Splice puts New in the place of Old at byte At of the file before the edit. A line that
// several upstreams include is a splice for each of their servers, at the same byte.
type Splice struct {
	Server
	At   int    `json:"at"`
	Old  string `json:"old,omitempty"`
	New  string `json:"new,omitempty"` // not empty: it marks the server down
	Line int    `json:"line"`          // of the server, from 1, before the edit
}

// A Change is the edit of one server line, and the operation that made it.
type Change struct {
	Operation string `json:"operation,omitempty"` // its ID
	File      string `json:"file"`
	Line      int    `json:"line"` // from 1, before the edit
	At        int    `json:"at"`   // byte of the file, before the edit
	Before    string `json:"sha256_before"`
	After     string `json:"sha256_after,omitempty"`
	Old       string `json:"old,omitempty"`
	New       string `json:"new,omitempty"`
	// Unsent tells that no reload was sent since: nginx has not loaded the change, unless
	// another process has reloaded it.
	Unsent bool `json:"unsent,omitempty"`
}

// A Mark is a `down` that drainctl wrote on a server line, and the change that wrote it. The journal
// has it from before the file is written until nginx was seen to serve the file without it. A mark
// without an operation is a `down` that somebody else wrote and an operation has cleared: a rollback
// puts it back.
type Mark struct {
	Server
	Change
	// Cleared is the change that clears the mark. It goes when nginx was seen to load it, or when
	// its operation ends.
	Cleared *Change `json:"cleared,omitempty"`
}

// The bounds of what one operation records, in bytes and numbers.
const (
	maxName      = 512
	maxReason    = 4 << 10
	maxTargets   = 10_000
	maxOperation = 4 << 20
)

// The bounds of what one user other than root may have recorded at a time.
const (
	maxOfRecorder      = 1000 // operations
	maxBytesOfRecorder = 4 << 20
)

// Begin adds an operation. Names that are not UTF-8 are refused: the state is JSON, and
// would not find them again. So is what does not fit the bounds.
func (s *State) Begin(op Operation) error {
	if s.index(op.ID) >= 0 {
		return fmt.Errorf("operation %s has begun already", op.ID)
	}
	if err := checkID(op.ID); err != nil {
		return err
	}
	if err := s.checkBounds(&op); err != nil {
		return err
	}
	s.Operations = append(s.Operations, op)
	s.LastID = max(s.LastID, op.ID)
	return nil
}

// Resume reopens an operation with the recorder, the spec and the progress of op, and adds the servers
// of op. The operation becomes the latest one.
func (s *State) Resume(op Operation) error {
	i := s.index(op.ID)
	if i < 0 {
		return gone(op.ID)
	}
	had := s.Operations[i]
	had.Recorder, had.Spec, had.Progress = op.Recorder, op.Spec, op.Progress
	had.Result, had.Ended, had.Open, had.NotDrained = "", time.Time{}, 0, nil
	for _, l := range op.Servers {
		if !had.Covers(l.Server) {
			had.Servers = append(had.Servers, l)
		}
	}
	s.Operations = append(slices.Delete(s.Operations, i, i+1), had)
	return s.checkBounds(&s.Operations[len(s.Operations)-1])
}

// check refuses an operation that is not well-formed or larger than any real one.
func (o *Operation) check() error {
	if !slices.Contains([]string{KindDrain, KindUndrain, KindRun, KindForget}, o.Kind) {
		return fmt.Errorf("%.40q is no kind of operation", o.Kind)
	}
	if len(o.Targets) > maxTargets {
		return fmt.Errorf("%d targets, more than %d", len(o.Targets), maxTargets)
	}
	if len(o.Reason) > maxReason {
		return fmt.Errorf("a reason of %d bytes, more than %d", len(o.Reason), maxReason)
	}
	for _, name := range append([]string{o.User, o.Host}, o.Targets...) {
		if len(name) > maxName {
			return fmt.Errorf("a name of %d bytes, more than %d", len(name), maxName)
		}
	}
	for _, l := range o.Servers {
		if name := l.File + " " + l.Upstream + " " + l.Address; !utf8.ValidString(name) {
			return fmt.Errorf("%q is not UTF-8, and cannot be recorded", name)
		}
	}
	if n := sizeOf(o); n > maxOperation {
		return fmt.Errorf("%d bytes, more than %d", n, maxOperation)
	}
	return nil
}

// sizeOf returns the number of bytes that a value takes in a file.
func sizeOf(v any) int {
	text, _ := json.Marshal(v)
	return len(text)
}

// checkBounds refuses an operation that does not fit the bounds of an operation, or those of
// its recorder.
func (s *State) checkBounds(op *Operation) error {
	if err := op.check(); err != nil {
		return fmt.Errorf("operation %s: %w", op.ID, err)
	}
	return s.checkRecorder(*op)
}

// checkRecorder refuses an operation of a user who has too many open ones.
func (s *State) checkRecorder(op Operation) error {
	if !op.Recorder.isBounded() {
		return nil
	}
	number, bytes := 1, sizeOf(op)
	ids := map[string]bool{op.ID: true}
	for _, o := range s.Operations {
		if o.ID != op.ID && op.Recorder.IsSame(o.Recorder) {
			number, bytes, ids[o.ID] = number+1, bytes+sizeOf(o), true
		}
	}
	for _, m := range s.Marks {
		if ids[m.Operation] || m.Cleared != nil && ids[m.Cleared.Operation] {
			bytes += sizeOf(m)
		}
	}
	if number > maxOfRecorder || bytes > maxBytesOfRecorder {
		return fmt.Errorf("%s has %d open operations of %d bytes here, and may have %d of %d bytes", op.Recorder, number-1, bytes, maxOfRecorder, maxBytesOfRecorder)
	}
	return nil
}

// Rename gives an operation another ID, also in its marks.
func (s *State) Rename(id, to string) error {
	i := s.index(id)
	if i < 0 {
		return gone(id)
	}
	s.Operations[i].ID = to
	for k := range s.Marks {
		if s.Marks[k].Operation == id {
			s.Marks[k].Operation = to
		}
		if c := s.Marks[k].Cleared; c != nil && c.Operation == id {
			c.Operation = to
		}
	}
	s.LastID = max(s.LastID, to)
	return nil
}

// Stage records an edit that is about to be written: each splice makes a mark or clears one. It drops
// an earlier mark of the same server if that was never written or is cleared. A reload that was sent for
// the earlier mark counts for the new one: nginx may still serve it. Stage refuses an edit that makes
// the operation larger than its bounds.
func (s *State) Stage(id string, e Edit) error {
	k := s.index(id)
	if k < 0 {
		return gone(id)
	}
	var sent []Server
	s.dropMarks(func(m Mark) bool {
		again := m.Cleared == nil && m.Before == e.Before || m.Operation == id && m.Cleared != nil
		again = again && m.File == e.Path && slices.ContainsFunc(e.Splices, func(sp Splice) bool { return sp.New != "" && sp.Server == m.Server })
		if again && !m.Unsent {
			sent = append(sent, m.Server)
		}
		return again
	})
	for _, sp := range e.Splices {
		c := Change{Operation: id, File: e.Path, Line: sp.Line, At: sp.At, Before: e.Before, After: e.After, Old: sp.Old, New: sp.New}
		c.Unsent = sp.New == "" || !slices.Contains(sent, sp.Server)
		if sp.New == "" {
			s.clear(sp.Server, c)
		} else if m := (Mark{Server: sp.Server, Change: c}); !slices.Contains(s.Marks, m) {
			s.Marks = append(s.Marks, m)
		}
	}
	if s.Edits == nil {
		s.Edits = map[string]FileHashes{}
	}
	s.Edits[e.Path] = FileHashes{e.Before, e.After}
	return s.checkBounds(&s.Operations[k])
}

// clear records that a change clears a mark on a server: one of the operation itself if there is one,
// otherwise that of another operation, otherwise a down of somebody else.
func (s *State) clear(server Server, c Change) {
	for _, own := range []bool{true, false} {
		for i, m := range s.Marks {
			if m.Server == server && m.Cleared == nil && (m.Operation == c.Operation || !own && !s.areApart(m.Operation, c.Operation)) {
				s.Marks[i].Cleared = &c
				return
			}
		}
	}
	s.Marks = append(s.Marks, Mark{Server: server, Change: Change{File: c.File, Line: c.Line}, Cleared: &c})
}

// areApart reports whether two operations are about different configurations.
func (s *State) areApart(id, other string) bool {
	a, _ := s.Find(id)
	b, _ := s.Find(other)
	return a.Conf != "" && b.Conf != "" && a.Conf != b.Conf
}

func (m Mark) clearedBy(id string) bool { return m.Cleared != nil && m.Cleared.Operation == id }

// EditsOf returns the edits of an operation to some servers, or to all if there are none, that it has
// not undone itself. An edit lacks the splices whose marks are gone.
func (s *State) EditsOf(id string, servers ...Server) []Edit {
	return s.edits(id, func(m Mark, c Change) bool {
		undone := m.Cleared != nil && (m.Operation == id || c.New != "")
		return !undone && (len(servers) == 0 || slices.Contains(servers, m.Server))
	})
}

// UnsentOf returns the edits of an operation for which no reload was sent.
func (s *State) UnsentOf(id string) []Edit {
	return s.edits(id, func(_ Mark, c Change) bool { return c.Unsent })
}

// edits returns the edits of an operation that are in the files, with the changes that is accepts.
func (s *State) edits(id string, is func(Mark, Change) bool) (all []Edit) {
	for _, m := range s.Marks {
		changes := []Change{m.Change}
		if m.Cleared != nil {
			changes = append(changes, *m.Cleared)
		}
		for _, c := range changes {
			if c.Operation != id || c.After == "" || !is(m, c) {
				continue
			}
			i := slices.IndexFunc(all, func(e Edit) bool { return e.isOf(c) })
			if i < 0 {
				i, all = len(all), append(all, Edit{Path: c.File, Before: c.Before, After: c.After})
			}
			all[i].Splices = append(all[i].Splices, Splice{Server: m.Server, At: c.At, Old: c.Old, New: c.New, Line: c.Line})
		}
	}
	return all
}

// isOf reports whether a change is part of the edit.
func (e Edit) isOf(c Change) bool {
	return e.Path == c.File && e.Before == c.Before && e.After == c.After
}

// has tells whether a change of a server is one of the edit's splices.
func (e Edit) has(server Server, c Change) bool {
	return e.isOf(c) && slices.ContainsFunc(e.Splices, func(sp Splice) bool {
		return sp.Server == server && sp.At == c.At && sp.New == c.New
	})
}

// Sent records that a reload is about to be sent for all changes of an operation.
func (s *State) Sent(id string) error {
	if s.index(id) < 0 {
		return gone(id)
	}
	for i := range s.Marks {
		if s.Marks[i].Operation == id {
			s.Marks[i].Unsent = false
		}
		if s.Marks[i].clearedBy(id) {
			s.Marks[i].Cleared.Unsent = false
		}
	}
	return nil
}

// Loaded records that nginx was seen to serve the files. It drops the marks that the operation made
// and cleared. It keeps the marks of others that the operation cleared: a rollback puts them back.
func (s *State) Loaded(id string) error {
	if err := s.Sent(id); err != nil {
		return err
	}
	s.dropMarks(func(m Mark) bool { return m.Operation == id && m.clearedBy(id) })
	return nil
}

// Undone records that edits of an operation were undone. It drops the marks for which no reload was
// sent, and notes the others as cleared: nginx may still serve them.
func (s *State) Undone(id string, edits ...Edit) error {
	if s.index(id) < 0 {
		return gone(id)
	}
	var kept []Mark
	for _, m := range s.Marks {
		undone := func(c Change) bool {
			return c.Operation == id && slices.ContainsFunc(edits, func(e Edit) bool { return e.has(m.Server, c) })
		}
		if m.Cleared != nil && undone(*m.Cleared) {
			m.Cleared = nil
			if m.Operation == "" {
				continue
			}
		}
		if m.Cleared == nil && undone(m.Change) {
			if m.Unsent {
				continue
			}
			m.Cleared = &Change{Operation: id, File: m.File, Line: m.Line}
		}
		kept = append(kept, m)
	}
	s.Marks = kept
	return nil
}

// Record notes how far each backend is.
func (s *State) Record(id string, progress json.RawMessage) error {
	i := s.index(id)
	if i < 0 {
		return gone(id)
	}
	s.Operations[i].Progress = progress
	return s.checkBounds(&s.Operations[i])
}

// results are all of them.
var results = []Result{ResultDone, ResultRolledBack, ResultPartial, ResultNotDrained}

// An Ending is how an operation ended.
type Ending struct {
	Result     Result            `json:"result"`
	Progress   json.RawMessage   `json:"progress,omitempty"`    // how each backend ended; not looked into here
	Open       int               `json:"open,omitempty"`        // connections left
	NotDrained []Server          `json:"not_drained,omitempty"` // that still have connections; empty: all of the operation
	Returned   []Server          `json:"returned,omitempty"`    // that the rollback has restored; empty: none or all, as Result says
	Supersede  []string          `json:"supersede,omitempty"`   // IDs of operations that this one replaces
	Lines      []json.RawMessage `json:"lines,omitempty"`       // for the history

	// The LB itself knows the rest. A caller cannot say it.
	At time.Time `json:"-"`
	// Down are servers that the configuration has down, or of which that is not known.
	Down []Server `json:"-"`
	// By is who ends it, and Locked the servers whose backends they have locked.
	By     Recorder `json:"-"`
	Locked []Server `json:"-"`
}

// End ends an operation. One that was rolled back is dropped, with its marks; what it has
// marked and left down makes it partial. An undrain or a forget that is done is dropped, and its
// servers are taken out of what began before it. A drain that is done stays. What a done one
// supersedes is dropped, and its marks become those of the done one. End refuses an unknown result, and
// an operation that stays and has grown beyond the bounds.
func (s *State) End(id string, e Ending) error {
	if !slices.Contains(results, e.Result) {
		return fmt.Errorf("operation %s: %.40q is no result of an operation", id, e.Result)
	}
	i := s.index(id)
	if i < 0 {
		return gone(id)
	}
	op := &s.Operations[i]
	left := filter(e.NotDrained, op.Covers)
	if e.Result == ResultRolledBack && slices.ContainsFunc(s.Marks, func(m Mark) bool { return m.Operation == id && slices.Contains(e.Down, m.Server) }) {
		e.Result = ResultPartial
	}
	s.keepCleared(id)
	op.Servers = filter(op.Servers, func(l Located) bool { return !slices.Contains(e.Returned, l.Server) })
	op.Result, op.Progress, op.Open, op.NotDrained, op.Ended = e.Result, e.Progress, e.Open, left, e.At
	switch e.Result {
	case ResultRolledBack:
		s.dropMarks(func(m Mark) bool { return m.Operation == id })
		s.Operations = slices.Delete(s.Operations, i, i+1)
	case ResultDone, ResultPartial:
		for k, m := range s.Marks {
			if slices.Contains(e.Supersede, m.Operation) {
				s.Marks[k].Operation = id
			}
		}
		s.Operations = slices.DeleteFunc(s.Operations, func(o Operation) bool {
			return o.ID != id && slices.Contains(e.Supersede, o.ID)
		})
		if e.Result == ResultPartial {
			break
		}
		if i = s.index(id); s.Operations[i].Kind != KindDrain || len(s.Operations[i].Servers) == 0 {
			s.undrained(i, e)
		}
	}
	if i = s.index(id); i >= 0 {
		return s.checkBounds(&s.Operations[i])
	}
	return nil
}

// keepCleared keeps the marks that an ending operation has cleared until their servers are known to be
// up. It drops those of a down of somebody else: nobody puts that back any more.
func (s *State) keepCleared(id string) {
	s.dropMarks(func(m Mark) bool { return m.Operation == "" && m.clearedBy(id) })
	for i, m := range s.Marks {
		if m.clearedBy(id) {
			s.Marks[i].Cleared = nil
		}
	}
}

// undrained drops the operation at i, the marks on its servers, and these servers from
// what began before it. What began later is about servers drained anew. Servers that are
// marked and still down keep their marks and their operations. So do, in operations of
// users that do not trust who ends it, servers that are down or that they have not locked.
func (s *State) undrained(i int, e Ending) {
	undrain, later := s.Operations[i], s.Operations[i+1:]
	isApart := func(id string) bool { return s.areApart(id, undrain.ID) }
	undrain.Servers = filter(undrain.Servers, func(l Located) bool {
		return !slices.Contains(e.Down, l.Server) || !slices.ContainsFunc(s.MarksOn(l.Server), func(m Mark) bool { return !isApart(m.Operation) })
	})
	anew := func(id string) bool {
		return slices.ContainsFunc(later, func(o Operation) bool { return o.ID == id })
	}
	s.dropMarks(func(m Mark) bool { return undrain.Covers(m.Server) && !anew(m.Operation) && !isApart(m.Operation) })
	var kept []Operation
	for _, o := range s.Operations[:i] {
		had := len(o.Servers)
		own := e.By.Controls(o.Recorder)
		o.Servers = filter(o.Servers, func(l Located) bool {
			mayLeave := own || slices.Contains(e.Locked, l.Server) && !slices.Contains(e.Down, l.Server)
			return !mayLeave || !undrain.Covers(l.Server) || isApart(o.ID)
		})
		if len(o.Servers) > 0 || had == 0 {
			kept = append(kept, o)
		}
	}
	s.Operations = append(kept, later...)
}

// Find is the operation with an ID, if it stands.
func (s *State) Find(id string) (op Operation, ok bool) {
	if i := s.index(id); i >= 0 {
		return s.Operations[i], true
	}
	return Operation{}, false
}

// MarksOn are drainctl's marks on the lines of a server: an upstream may name it more than once.
func (s *State) MarksOn(server Server) []Mark {
	return filter(s.Marks, func(m Mark) bool { return m.Server == server && m.Operation != "" })
}

// Standing is the operations on a server since it was last undrained, oldest first.
func (s *State) Standing(server Server) []Operation {
	return filter(s.Operations, func(o Operation) bool { return o.Covers(server) })
}

// Unfinished is the operations that may be resumed, oldest first: those that are
// unfinished, and the latest on one of their servers.
func (s *State) Unfinished() []Operation {
	var found []Operation
	for i, o := range s.Operations {
		latest := func(l Located) bool {
			return !slices.ContainsFunc(s.Operations[i+1:], func(after Operation) bool { return after.Covers(l.Server) })
		}
		if o.Unfinished() && o.Kind != KindForget && (len(o.Servers) == 0 || slices.ContainsFunc(o.Servers, latest)) {
			found = append(found, o)
		}
	}
	return found
}

// Recorded returns the servers that a mark is on, or an operation other than a rolling run: that one also
// lists servers that it has not begun with or has put back.
func (s *State) Recorded() (all []Located) {
	note := func(l Located) {
		if !slices.ContainsFunc(all, func(had Located) bool { return had.Server == l.Server }) {
			all = append(all, l)
		}
	}
	for _, m := range s.Marks {
		if m.Operation != "" {
			note(Located{Server: m.Server, File: m.File, Line: m.Line, Down: true})
		}
	}
	for _, o := range s.Operations {
		if o.Kind != KindRun {
			for _, l := range o.Servers {
				note(l)
			}
		}
	}
	return all
}

// Without returns the state as if it had nothing of some servers.
func (s State) Without(servers []Located) State {
	is := func(server Server) bool {
		return slices.ContainsFunc(servers, func(l Located) bool { return l.Server == server })
	}
	s.Marks = filter(s.Marks, func(m Mark) bool { return !is(m.Server) })
	s.Operations = slices.Clone(s.Operations)
	for i, o := range s.Operations {
		s.Operations[i].Servers = filter(o.Servers, func(l Located) bool { return !is(l.Server) })
	}
	return s
}

// WithoutConf returns the state as if it had nothing of the configurations that are others.
func (s State) WithoutConf(isOther func(conf string) bool) State {
	other := map[string]bool{}
	s.Operations = filter(s.Operations, func(o Operation) bool {
		other[o.ID] = o.Conf != "" && isOther(o.Conf)
		return !other[o.ID]
	})
	s.Marks = filter(s.Marks, func(m Mark) bool { return !other[m.Operation] && (m.Cleared == nil || !other[m.Cleared.Operation]) })
	return s
}

// DrainsSince returns the drains that began after an operation on one of its servers, and stand.
func (s *State) DrainsSince(id string) []Operation {
	i := s.index(id)
	if i < 0 {
		return nil
	}
	return filter(s.Operations[i+1:], func(o Operation) bool {
		return o.Kind == KindDrain && slices.ContainsFunc(s.Operations[i].Servers, func(l Located) bool { return o.Covers(l.Server) })
	})
}

// Ours tells whether a file with this SHA-256 is as drainctl's last edit of it found it or left
// it: then nobody else has changed it since.
func (s *State) Ours(path, sha string) bool {
	last, ok := s.Edits[path]
	return ok && (sha == last.Before || sha == last.After)
}

func (s *State) index(id string) int {
	return slices.IndexFunc(s.Operations, func(o Operation) bool { return o.ID == id })
}

// filter returns the elements that are wanted, in a new slice.
func filter[T any](all []T, isWanted func(T) bool) (wanted []T) {
	for _, x := range all {
		if isWanted(x) {
			wanted = append(wanted, x)
		}
	}
	return wanted
}

func (s *State) dropMarks(which func(Mark) bool) { s.Marks = slices.DeleteFunc(s.Marks, which) }

func gone(id string) error { return fmt.Errorf("operation %s: %w", id, ErrGone) }
