package main

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
)

// decodeToken splits a compact JWS (RFC 7515, 7.1) into header and payload for
// people to read. It verifies nothing.
func decodeToken(token string) (header, payload json.RawMessage, err error) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return nil, nil, errors.New("not a compact JWS: expected three parts separated by dots")
	}
	if header, err = base64.RawURLEncoding.Strict().DecodeString(parts[0]); err == nil {
		payload, err = base64.RawURLEncoding.Strict().DecodeString(parts[1])
	}
	if err != nil || !json.Valid(header) || !json.Valid(payload) {
		return nil, nil, errors.New("not a JWT: header and payload are not base64url-encoded JSON")
	}
	return header, payload, nil
}
