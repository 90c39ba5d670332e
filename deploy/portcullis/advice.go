package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"portcullis.dev/portcullis/pkg/config"
)

// advise says beside the output what of the documents is allowed and probably not
// meant.
func advise(cmd *cobra.Command, docs []config.Document) {
	change := changeOf(docs)
	for _, p := range config.Advise(change.Upserts, time.Now()) {
		locate(p, docs)
		fmt.Fprintln(cmd.ErrOrStderr(), "warning:", p.Error())
	}
}

// locate finds where a problem stands in the files.
func locate(p *config.Problem, docs []config.Document) {
	for _, doc := range docs {
		if config.KeyOf(doc.Resource) == p.Key {
			doc.Locate(p)
		}
	}
}
