package expr

import (
	"cel.dev/cel-go/common/cost"
	"cel.dev/cel-go/common/types"
)

// MaxEntries is how many header fields and how many query parameters an expression
// can read. Who evaluates one lets it fail on more: what it costs is estimated on
// that, and a request may carry ten times as many.
const MaxEntries = maxEntries

// sizes bounds the inputs for the estimate of an expression's cost: what a node
// admits at most, rounded down to what requests really carry. A larger input
// costs proportionally more; it cannot exceed the node's limits on headers and
// tokens.
type sizes struct{}

const (
	maxEntries     = 128
	maxEntryString = 256
	maxString      = 4096
)

func (sizes) EstimateSize(n cost.AstNode) *cost.SizeEstimate {
	if n.ComputedSize() != nil || len(n.Path()) == 0 || n.Type() == nil {
		return nil
	}
	top := uint64(maxString)
	switch n.Type().Kind() {
	case types.ListKind, types.MapKind:
		top = maxEntries
	default:
		if len(n.Path()) > 1 {
			top = maxEntryString
		}
	}
	return &cost.SizeEstimate{Min: 0, Max: top}
}

func (sizes) EstimateCallCost(string, string, *cost.AstNode, []cost.AstNode) *cost.CallEstimate {
	return nil
}
