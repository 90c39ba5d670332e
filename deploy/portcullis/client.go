package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"portcullis.dev/portcullis/pkg/config"
	"portcullis.dev/portcullis/pkg/identity"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
)

// maxMessage bounds what the CLI sends and receives at once.
const maxMessage = 256 << 20

// bearer sends the operator credential with each call. It refuses a connection
// without TLS.
type bearer string

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}

func (bearer) RequireTransportSecurity() bool { return true }

// dial connects to the admin API of the context.
func (c *cli) dial() (adminv1.AdminServiceClient, func(), error) {
	file, err := c.readContext()
	if err != nil {
		return nil, nil, err
	}
	secure, err := identity.ClientAdmin([]byte(file.CA))
	if err != nil {
		return nil, nil, fmt.Errorf("the context's ca: %w", err)
	}
	conn, err := grpc.NewClient("passthrough:///"+file.Address,
		grpc.WithTransportCredentials(credentials.NewTLS(secure)),
		grpc.WithPerRPCCredentials(bearer(file.Credential)),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		grpc.WithUserAgent("portcullis/"+release))
	if err != nil {
		return nil, nil, err
	}
	return adminv1.NewAdminServiceClient(conn), func() { _ = conn.Close() }, nil
}

// callTimeout bounds calls that do not wait for convergence.
const callTimeout = 30 * time.Second

// fromStatus turns any error into one with an exit code and a message for
// people.
func fromStatus(err error) *exitCode {
	if coded, ok := codeOf(err); ok {
		return coded
	}
	st, ok := status.FromError(err)
	if !ok {
		return &exitCode{exitError, err}
	}
	message := st.Message()
	code := exitError
	switch st.Code() {
	case codes.Aborted:
		code = exitConflict
		message += "\nSomebody else changed the configuration meanwhile: plan again, then apply."
	case codes.Unavailable:
		message = "the control plane cannot be reached: " + dialError(message)
	case codes.Canceled:
		message = "interrupted"
	case codes.DeadlineExceeded:
		message = "the control plane did not answer in time"
	}
	if len(problemsOf(st)) > 0 {
		code = exitInvalid
	}
	return &exitCode{code, errors.New(message)}
}

// dialError leaves of gRPC's wrapping what a reader can act on.
func dialError(message string) string {
	if _, cause, found := strings.Cut(message, "Error while dialing: "); found {
		return strings.TrimSuffix(cause, `"`)
	}
	if _, cause, found := strings.Cut(message, "transport: "); found {
		return strings.TrimSuffix(cause, `"`)
	}
	return message
}

// problemsOf reads the problems that the admin API attaches to a refusal.
func problemsOf(st *status.Status) config.Problems {
	var problems config.Problems
	for _, detail := range st.Details() {
		if plan, ok := detail.(*adminv1.PlanResponse); ok {
			for _, p := range plan.Problems {
				problems = append(problems, config.ProblemOf(p))
			}
		}
	}
	return problems
}

// located returns a refusal with its problems placed in the source files.
func located(err error, docs []config.Document) error {
	st, ok := status.FromError(err)
	if !ok {
		return err
	}
	problems := problemsOf(st)
	if len(problems) == 0 {
		return err
	}
	return invalid(problems, docs)
}

// invalid says what is wrong, each problem on a line, with exit code 3.
func invalid(problems config.Problems, docs []config.Document) error {
	lines := make([]string, 0, len(problems))
	for _, p := range problems {
		locate(p, docs)
		lines = append(lines, p.Error())
	}
	return errorOf(exitInvalid, fmt.Errorf("validation failed, nothing was changed:\n  %s", strings.Join(lines, "\n  ")))
}

// call runs f with a client and a bounded context.
func (c *cli) call(cmd *cobra.Command, extra time.Duration, f func(context.Context, adminv1.AdminServiceClient) error) error {
	client, closeClient, err := c.dial()
	if err != nil {
		return err
	}
	defer closeClient()
	ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout+extra)
	defer cancel()
	return f(ctx, client)
}
