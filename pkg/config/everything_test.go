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
  backends: [{upstream: up, weight: 0, subset: {version: "2"}}]
  priority: -5
  timeouts: {request: 5s, attempt: 2s, idle: 10m, deadlineHeader: X-Timeout-Ms}
  retries: {attempts: 2, "on": [reset, unavailable, server_error, timeout], statuses: [409], nonIdempotent: true, backoff: 10ms}
  hedging: {delay: 50ms, attempts: 2}
  mirrors: [{upstream: up, ratio: 0.5}]
  criticality: sheddable
---
apiVersion: portcullis.dev/v1
kind: Upstream
metadata: {name: guarded}
spec:
  endpoints: [{url: "http://a:80"}]
  healthCheck: {http: {path: "/ready?deep=1", host: a.example, statuses: [200, 204]}, interval: 1s, timeout: 500ms, healthy: 1, unhealthy: 2}
  outlierDetection: {consecutiveFailures: 3, failureRatio: 0.25, minRequests: 10, interval: 5s, ejection: 1s, maxEjection: 1m, maxEjected: 0.3}
  circuitBreaker: {maxConnections: 100, maxPending: 10, maxRequests: 1000}
  adaptiveConcurrency: {min: 5, max: 500}
  retryBudget: {ratio: 0, min: 0}
  panicThreshold: 0
---
apiVersion: portcullis.dev/v1
kind: Upstream
metadata: {name: asked}
spec:
  endpoints: [{url: "http://a:80"}]
  healthCheck: {grpc: {service: shop.v1.Orders}}
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
kind: Upstream
metadata: {name: balanced}
spec:
  endpoints:
    - {url: "http://_http._tcp.orders.internal", resolve: service, zone: eu-1a}
    - {url: "http://orders.internal:8080", resolve: addresses}
  balance:
    algorithm: bounded_load
    hash: [{header: X-Tenant}, {cookie: sid}, {claim: org.id}, {address: true}]
    loadFactor: 1.5
    slowStart: 30s
    zoneAware: true
    affinity: {cookie: stick, maxAge: 1h}
  dns: {refresh: 30s, server: "10.0.0.2:53"}
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
