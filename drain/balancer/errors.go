package balancer

import (
	"context"
	"errors"
	"io/fs"

	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/remote"
)

// A Code says what kind of error an [Error] is.
type Code string

// The codes.
const (
	CodeFailed     Code = "failed"      // anything else
	CodeUsage      Code = "usage"       // the target or the upstream makes no sense here
	CodeRefused    Code = "refused"     // nothing was touched
	CodeBusy       Code = "busy"        // too many calls are under way
	CodePermission Code = "permission"  // the user may not read or do it
	CodeLocked     Code = "locked"      // another operator holds the lock
	CodeChanged    Code = "changed"     // a file is no longer as it was planned
	CodeMissing    Code = "missing"     // no server of the target is there any more
	CodeGone       Code = "gone"        // the journal of the operation is gone
	CodeUnknown    Code = "unknown"     // there is no such operation
	CodeVersion    Code = "version"     // journal or agent of another version
	CodeConnection Code = "connection"  // the LB can no longer be asked
	CodeCanceled   Code = "interrupted" // the caller gave up

	// Of a URL that is asked for:
	CodeUnreachable Code = "unreachable" // nothing accepts a connection
	CodeUnhealthy   Code = "unhealthy"   // the app fails, and may recover
	CodeWrongURL    Code = "wrong-url"   // no restart of the app changes the answer
)

// An Error is one that means the same on both ends of an agent's connection.
type Error struct {
	Code     Code            `json:"code"`
	Message  string          `json:"message"`
	Override string          `json:"override,omitempty"` // the flag that overrides it
	Holder   *journal.Holder `json:"holder,omitempty"`   // of CodeLocked
	cause    error
}

func (e *Error) Error() string { return e.Message }

func (e *Error) Unwrap() error { return e.cause }

// CodeOf is the code of err, "" where it has none.
func CodeOf(err error) Code {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

// asError gives err a code, so that it can cross the connection. Its message has no
// secret of a URL, whoever wrote it: a web server, nginx, or an earlier drainctl.
func asError(err error) *Error {
	message := remote.Redact(err.Error())
	var e *Error
	if errors.As(err, &e) {
		return &Error{Code: e.Code, Message: message, Override: e.Override, Holder: e.Holder, cause: err}
	}
	code := CodeFailed
	var locked *journal.LockedError
	switch {
	case errors.As(err, &locked):
		e := &Error{Code: CodeLocked, Message: message, cause: err}
		if locked.Known {
			e.Holder = &locked.Holder
		}
		return e
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		code = CodeCanceled
	case errors.Is(err, journal.ErrGone):
		code = CodeGone
	case errors.Is(err, journal.ErrVersion):
		code = CodeVersion
	case errors.Is(err, fs.ErrPermission):
		code = CodePermission
	}
	return &Error{Code: code, Message: message, cause: err}
}
