package httppath

// SafeName tells whether a field name is of letters, digits and '-' alone. Other
// names are legal, but servers that hand fields on as variables map them to the
// same name (RFC 3875, 4.1.18), so that X_User would pass for X-User.
func SafeName(name string) bool {
	for i := 0; i < len(name); i++ {
		c := name[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-') {
			return false
		}
	}
	return name != ""
}
