package config

import (
	"encoding/json"
	"slices"
	"testing"
)

// Editors show what a kind and a field are for: each must say so.
func TestSchemaDescribesEverything(t *testing.T) {
	var schema struct {
		OneOf       []struct{ Title, Description string }
		Definitions map[string]struct {
			Description string
			Properties  map[string]struct{ Description string }
		}
	}
	if err := json.Unmarshal(Schema(), &schema); err != nil {
		t.Fatal(err)
	}
	var missing []string
	for _, kind := range schema.OneOf {
		if kind.Description == "" {
			missing = append(missing, kind.Title)
		}
	}
	fields := 0
	for name, definition := range schema.Definitions {
		if definition.Description == "" {
			missing = append(missing, name)
		}
		for field, property := range definition.Properties {
			fields++
			if property.Description == "" {
				missing = append(missing, name+"."+field)
			}
		}
	}
	slices.Sort(missing)
	if len(schema.OneOf) != len(Kinds()) || fields < 100 || len(missing) > 0 {
		t.Errorf("of %d kinds and %d fields these have no comment in proto/config/v1: %q", len(schema.OneOf), fields, missing)
	}
}
