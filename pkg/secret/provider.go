package secret

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Provider is where sealing keys come from. Keys returns them with the key that
// seals first.
type Provider interface{ Keys() ([]Key, error) }

// File provides keys from a file: one key per line in base64, the key that seals
// first; blank lines and lines that begin with # do not count. Its mode must
// keep others out: readable by owner and group at most, writable by the owner.
type File struct {
	Path string
	// Create makes the file, mode 0600, with one new key when there is none.
	Create bool
}

// Env provides keys from an environment variable in the format of File, keys
// separated by line ends or commas.
type Env struct{ Name string }

// ProviderOf reads a reference: "file:PATH", "env:NAME", or a plain path.
func ProviderOf(ref string) (Provider, error) {
	scheme, rest, found := strings.Cut(ref, ":")
	switch {
	case ref == "":
		return nil, errors.New("empty key reference: want file:PATH or env:NAME")
	case found && scheme == "env":
		return Env{rest}, nil
	case found && scheme == "file":
		return File{Path: rest}, nil
	case filepath.IsAbs(ref) || !found:
		return File{Path: ref}, nil
	}
	return nil, fmt.Errorf("key reference %q: want file:PATH or env:NAME", scheme+":…")
}

// Load makes a sealer of a provider's keys.
func Load(p Provider) (*Sealer, error) {
	keys, err := p.Keys()
	if err != nil {
		return nil, err
	}
	return New(keys...)
}

// Keys implements Provider.
func (e Env) Keys() ([]Key, error) {
	v, ok := os.LookupEnv(e.Name)
	if !ok {
		return nil, fmt.Errorf("environment variable %s with the sealing keys is not set", e.Name)
	}
	keys, err := ParseKeys([]byte(strings.ReplaceAll(v, ",", "\n")))
	if err != nil {
		return nil, fmt.Errorf("environment variable %s: %w", e.Name, err)
	}
	return keys, nil
}

// Keys implements Provider. Of several processes that create the file at once
// one wins, and all of them return its key.
func (f File) Keys() ([]Key, error) {
	data, err := readPrivate(f.Path)
	if errors.Is(err, fs.ErrNotExist) && f.Create {
		if err := createOnce(f.Path, FormatKeys(NewKey())); err != nil {
			return nil, fmt.Errorf("create key file: %w", err)
		}
		data, err = readPrivate(f.Path)
	}
	if err != nil {
		return nil, fmt.Errorf("key file: %w", err)
	}
	keys, err := ParseKeys(data)
	if err != nil {
		return nil, fmt.Errorf("key file %s: %w", f.Path, err)
	}
	return keys, nil
}

// Rotate puts a new key in front and returns all keys, the new one first. It
// replaces the file whole: a crash leaves the old or the new one. Where several
// processes share the keys, give every one of them the file before any seals
// with the new key: distribute with the new key last, then with it first.
func (f File) Rotate() ([]Key, error) {
	keys, err := f.Keys()
	if err != nil {
		return nil, err
	}
	keys = append([]Key{NewKey()}, keys...)
	if err := WriteFile(f.Path, FormatKeys(keys...), 0o600); err != nil {
		return nil, fmt.Errorf("rotate key file: %w", err)
	}
	return keys, nil
}

// ParseKeys reads the format of File. Its errors name the line, never its
// content.
func ParseKeys(data []byte) ([]Key, error) {
	var keys []Key
	lines := bufio.NewScanner(bytes.NewReader(data))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		raw, err := base64.StdEncoding.Strict().DecodeString(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: want one key in base64", n)
		}
		k, err := KeyOf(raw)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		keys = append(keys, k)
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if len(keys) == 0 {
		return nil, errors.New("holds no key")
	}
	return keys, nil
}

// FormatKeys writes the format of File.
func FormatKeys(keys ...Key) []byte {
	var b bytes.Buffer
	b.WriteString("# Portcullis sealing keys. The first one seals. Whoever reads this file reads every stored secret.\n")
	for _, k := range keys {
		b.WriteString(base64.StdEncoding.EncodeToString(k.bytes[:]))
		b.WriteByte('\n')
	}
	return b.Bytes()
}

// Resolve gives the value that a reference names: "env:NAME" or "file:PATH"
// (without its last line end). A value with neither prefix is refused: secrets
// do not belong on command lines.
func Resolve(ref string) (Redacted, error) {
	scheme, rest, _ := strings.Cut(ref, ":")
	switch scheme {
	case "env":
		v, ok := os.LookupEnv(rest)
		if !ok || v == "" {
			return "", fmt.Errorf("environment variable %s is not set", rest)
		}
		return Redacted(v), nil
	case "file":
		data, err := readPrivate(rest)
		if err != nil {
			return "", fmt.Errorf("secret file: %w", err)
		}
		v := strings.TrimRight(string(data), "\r\n")
		if v == "" {
			return "", fmt.Errorf("secret file %s is empty", rest)
		}
		return Redacted(v), nil
	}
	return "", errors.New("a secret is given as file:PATH or env:NAME")
}
