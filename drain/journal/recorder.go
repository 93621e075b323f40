package journal

import (
	"fmt"
	"os"
	"os/user"
	"strconv"
)

// A Recorder is the user on whose behalf an entry of the journal was written, as the
// process that wrote it saw that user. Nothing that a caller says goes into it.
type Recorder struct {
	UID  uint32 `json:"uid"`
	Name string `json:"name,omitempty"`
}

// String is the recorder for a message: "deploy (uid 1000)".
func (r Recorder) String() string {
	if r.Name == "" {
		return fmt.Sprintf("uid %d", r.UID)
	}
	return fmt.Sprintf("%s (uid %d)", r.Name, r.UID)
}

// Caller is the user who runs this process: the one who called sudo, where root runs it
// through sudo (sudo(8): SUDO_UID, SUDO_USER), otherwise the process's own.
// Only root's process believes its environment, for only root can have set it.
func Caller() (Recorder, error) {
	uid, name := os.Geteuid(), ""
	if text := os.Getenv("SUDO_UID"); uid == 0 && text != "" {
		n, err := strconv.ParseUint(text, 10, 32)
		if err != nil {
			return Recorder{}, fmt.Errorf("find out who called sudo: SUDO_UID: %w", err)
		}
		return Recorder{UID: uint32(n), Name: os.Getenv("SUDO_USER")}, nil
	}
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		name = u.Username
	}
	return Recorder{UID: uint32(uid), Name: name}, nil
}

// Trusts reports whether a user may rely on what was recorded without a look at it: it
// is their own, or root's. The recorder of an entry that has none is not known.
func (r Recorder) Trusts(recorder *Recorder) bool {
	return recorder != nil && (recorder.UID == 0 || recorder.UID == r.UID)
}

// Controls reports whether a user may resume, replace or take servers out of what was recorded: it is
// their own, or they are root.
func (r Recorder) Controls(recorder *Recorder) bool {
	return r.UID == 0 || recorder.IsSame(&r)
}

// isBounded reports whether the bounds of users other than root are the recorder's. In
// files of earlier versions there is none.
func (r *Recorder) isBounded() bool { return r != nil && r.UID != 0 }

// IsSame reports whether two recorders are one user. Journals of earlier versions have no recorder, and a
// user cannot record an operation without one.
func (r *Recorder) IsSame(other *Recorder) bool {
	return r == other || r != nil && other != nil && r.UID == other.UID
}
