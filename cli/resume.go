package cli

import (
	"slices"

	"github.com/urfave/cli/v2"

	"github.com/drainctl/drainctl/drain"
)

func resumeCommand(s *session) *cli.Command {
	flags := slices.Concat(journalFlags(), whereFlags(), controlFlags())
	flags = append(flags, recordFlags()...)
	flags = append(flags, sshFlags()...)
	return &cli.Command{
		Name:      "resume",
		Usage:     "go on with a drain or undrain that was left half-way",
		ArgsUsage: "[ID|TARGET]",
		Description: "What was asked for is in the journal; no flag of the first run is needed again. Without\n" +
			"an ID or a TARGET it is the only operation that was left half-way. drainctl undrain\n" +
			"takes such an operation back instead.",
		Flags: append(flags, outputFlags()...),
		Action: func(c *cli.Context) error {
			if err := s.begin(c); err != nil {
				return err
			}
			req, err := s.resumeRequest(c)
			if err != nil {
				return err
			}
			return s.operate(c.Context, req, false)
		},
	}
}

// resumeRequest is the request of the operation that was left half-way.
func (s *session) resumeRequest(c *cli.Context) (*drain.Request, error) {
	args := c.Args().Slice()
	if len(args) > 1 {
		return nil, usage("resume takes one ID or TARGET; %q is one argument too many", args[1])
	}
	lb, err := s.loadBalancer(c)
	if err != nil {
		return nil, err
	}
	ledger, err := s.journal(c.Context, lb, c.String("state-dir"))
	if err != nil {
		return nil, err
	}
	o, err := drain.FindUnfinished(ledger, c.Args().First())
	if err != nil {
		return nil, err
	}
	req, err := s.common(c, lb)
	if err != nil {
		return nil, err
	}
	if err := s.ssh(c, req); err != nil {
		return nil, err
	}
	reason, pending := req.Reason, req.Allow.Pending
	if err := o.Restore(req); err != nil {
		return nil, err
	}
	if reason != "" {
		req.Reason = reason
	}
	req.Allow.Pending = req.Allow.Pending || pending
	return req, nil
}
