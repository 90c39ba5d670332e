package config

// everything sets each field of each message at least once.
const everything = `
---
apiVersion: portcullis.dev/v1
kind: Gateway
metadata: {name: default, labels: {team: platform, "yes": "no"}}
spec:
  limits: {maxHeaderBytes: 65536, maxBodyBytes: 10485760}
  tracing: {ratio: 0.25, trustIncoming: true}
  accessLog: {disabled: true}
  listeners:
    - {name: http}
    - name: https
      tls: {certificates: [shop], clientCertificates: {ca: "pem", optional: true}, minVersion: "1_3"}
      http3: true
---
apiVersion: portcullis.dev/v1
kind: Route
metadata: {name: every}
spec:
  public: true
  hostnames: ["*.example.com"]
  matches:
    - path: {exact: /a}
      headers: [{name: X-Version, exact: "2"}, {name: X-Any}]
      query: [{name: page, regex: "[0-9]+"}]
    - path: {template: "/users/{id}/posts"}
      methods: [DELETE]
  policies:
    - headers:
        request: {remove: [X-Debug], set: {X-Env: " prod"}, add: {Via: gw}}
    - apiKey: {header: X-Key}
    - rateLimit: {limits: [{requests: 1, window: 1d, burst: 7}], onPartition: strict}
  backends: [{upstream: up, weight: 0}]
  priority: -5
---
apiVersion: portcullis.dev/v1
kind: Upstream
metadata: {name: tls}
spec:
  endpoints: [{url: "https://[::1]:8443"}]
  tls:
    ca: |
      -----BEGIN CERTIFICATE-----
      AAAA
      -----END CERTIFICATE-----
    serverName: up.internal
    certificate: "multi\nline without end"
    privateKey: secret
    pins: [AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=]
  timeouts: {connect: 250ms, idle: 1m30s}
  shared: true
---
apiVersion: portcullis.dev/v1
kind: Issuer
metadata: {name: idp}
spec:
  issuer: https://idp.example
  jwksUri: https://idp.example/keys
  algorithms: [ES256, EdDSA]
  types: [at+jwt, JWT]
  clockSkew: 0s
  maxLifetime: 1h
  claims: {scopes: scope, roles: realm.roles, groups: groups, client: azp}
---
apiVersion: portcullis.dev/v1
kind: Issuer
metadata: {name: others}
spec: {issuer: x, jwks: '{"keys": []}', hmacSecret: AAAA, builtIn: true}
---
apiVersion: portcullis.dev/v1
kind: KeySet
metadata: {name: idp}
spec:
  keys: [{kid: "1", algorithms: [ES256], spki: AAEC/w==}]
  fetchedAt: 2026-01-02T15:04:05.123456789Z
  staleAt: "2026-01-02T15:04:05+02:00"
  problem: "line one\nline two \n\n"
---
apiVersion: portcullis.dev/v1
kind: Application
metadata: {name: web}
spec: {description: "ünï – 'q' \"d\" # :", scopes: [a, "1", "1e3", "null", "~", "0x1f", ""], roles: [admin], groups: [g], disabled: true}
---
apiVersion: portcullis.dev/v1
kind: Credential
metadata: {name: web-1}
spec:
  application: web
  apiKey: {sha256: AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=, hint: pc_abc}
  expiresAt: 2030-01-01T00:00:00Z
  createdAt: 0001-01-01T00:00:00Z
  scopes: [a]
---
apiVersion: portcullis.dev/v1
kind: Workspace
metadata: {name: tenant}
spec: {description: "a tenant's", hostnames: [tenant.example, "*.tenant.example"]}
---
apiVersion: portcullis.dev/v1
kind: Certificate
metadata: {name: shop}
spec:
  acme: {directory: "https://acme.example/directory", email: ops@example.com, hostnames: [shop.example], termsAgreed: true}
---
apiVersion: portcullis.dev/v1
kind: Certificate
metadata: {name: own}
spec: {certificate: "pem", privateKey: key, ocspResponse: AAAA}
---
apiVersion: portcullis.dev/v1
kind: IssuedCertificate
metadata: {name: shop}
spec:
  issuedAt: 2026-01-02T15:04:05Z
  challenges: [{token: a, keyAuthorization: a.b}]
`
