module github.com/valkey-io/valkey-go/valkeyotel

go 1.26

require github.com/valkey-io/valkey-go v1.0.75
