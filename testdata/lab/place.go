package lab

import (
	"fmt"
	"path/filepath"
	"strconv"
)

// A place is where a lab can be. A machine has a few, each with a directory, a lock and
// names of its own, so that as many labs can be up side by side. They are fixed, so that
// the next lab knows where to look for what a killed one has left behind.
type place int

// places is how many there are; the first is 1.
const places = 8

const placesDirectory = "/run/drainctl-labs"

func allPlaces() []place {
	var all []place
	for p := range place(places) {
		all = append(all, p+1)
	}
	return all
}

// directory holds the lab's state, layers and roots.
func (p place) directory() string { return filepath.Join(placesDirectory, strconv.Itoa(int(p))) }

// lockPath is the file that is locked while a lab is up there.
func (p place) lockPath() string { return p.directory() + ".lock" }

// prefix is of the lab's machine names, network namespaces and control groups.
func (p place) prefix() string { return fmt.Sprintf("drainctl%d-", p) }

func (p place) layersDirectory() string { return filepath.Join(p.directory(), "layers") }
func (p place) rootsDirectory() string  { return filepath.Join(p.directory(), "roots") }
func (p place) binDirectory() string    { return filepath.Join(p.layersDirectory(), "bin") }
