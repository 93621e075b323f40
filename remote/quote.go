package remote

import "al.essio.dev/pkg/shellescape"

// Quote returns args as one line that a POSIX shell splits back into exactly
// these words.
func Quote(args ...string) string { return shellescape.QuoteCommand(args) }
