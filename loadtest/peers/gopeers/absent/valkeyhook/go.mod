module github.com/valkey-io/valkey-go/valkeyhook

go 1.26

require github.com/valkey-io/valkey-go v1.0.75
