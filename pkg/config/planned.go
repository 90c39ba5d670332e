package config

import "google.golang.org/protobuf/reflect/protoreflect"

// planned are the fields that the protos have and this release does not act on:
// to take one and ignore it would be a silent hole.
func planned() []protoreflect.FullName {
	const v1 = "portcullis.config.v1."
	return []protoreflect.FullName{
		v1 + "Listener.http3",
	}
}
