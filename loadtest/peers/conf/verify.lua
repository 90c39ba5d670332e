-- Verifies RS256 access tokens with libcrypto and remembers the verdict until the
-- token expires. Debian packages no JOSE library for OpenResty's Lua; claims are
-- taken from tokens whose signature holds, whose form is that of this run.
local ffi = require("ffi")
local base64 = require("ngx.base64")
local re_match = ngx.re.match
ffi.cdef [[
typedef struct bio_st BIO;
typedef struct evp_pkey_st EVP_PKEY;
typedef struct evp_md_st EVP_MD;
typedef struct evp_md_ctx_st EVP_MD_CTX;
BIO *BIO_new_mem_buf(const void *buf, int len);
int BIO_free(BIO *a);
EVP_PKEY *PEM_read_bio_PUBKEY(BIO *bp, EVP_PKEY **x, void *cb, void *u);
const EVP_MD *EVP_sha256(void);
EVP_MD_CTX *EVP_MD_CTX_new(void);
void EVP_MD_CTX_free(EVP_MD_CTX *ctx);
int EVP_DigestVerifyInit(EVP_MD_CTX *ctx, void **pctx, const EVP_MD *type, void *e, EVP_PKEY *pkey);
int EVP_DigestVerify(EVP_MD_CTX *ctx, const unsigned char *sig, size_t siglen, const unsigned char *tbs, size_t tbslen);
]]
local crypto = ffi.load("libcrypto.so.3")

local file = assert(io.open("{{.Public}}", "r"))
local pem = file:read("*a")
file:close()
local bio = crypto.BIO_new_mem_buf(pem, #pem)
local key = crypto.PEM_read_bio_PUBKEY(bio, nil, nil, nil)
crypto.BIO_free(bio)
assert(key ~= nil, "no public key in {{.Public}}")

local function holds(input, signature)
  local ctx = crypto.EVP_MD_CTX_new()
  local ok = crypto.EVP_DigestVerifyInit(ctx, nil, crypto.EVP_sha256(), nil, key) == 1
    and crypto.EVP_DigestVerify(ctx, signature, #signature, input, #input) == 1
  crypto.EVP_MD_CTX_free(ctx)
  return ok
end

-- accepted returns when a token expires and whose it is; nil when it is refused.
local function accepted(token)
  local parts = re_match(token, [[^([\w-]+)\.([\w-]+)\.([\w-]+)$]], "jo")
  if not parts then return nil end
  local header, payload, signature = base64.decode_base64url(parts[1]), base64.decode_base64url(parts[2]), base64.decode_base64url(parts[3])
  if not (header and payload and signature) then return nil end
  if not header:find('"alg":"RS256"', 1, true) or not holds(parts[1] .. "." .. parts[2], signature) then return nil end
  if not payload:find('"iss":"{{.Issuer}}"', 1, true) or not payload:find('"aud":"{{.Audience}}"', 1, true) then return nil end
  return tonumber(payload:match('"exp":(%d+)')), payload:match('"sub":"([^"]*)"')
end

local verdicts, counters = ngx.shared.verdicts, ngx.shared.counters
return function()
  local field = ngx.var.http_authorization
  if not field or field:sub(1, 7) ~= "Bearer " then return ngx.exit(401) end
  local token = field:sub(8)
  local subject = verdicts:get(token)
  if not subject then
    local expires, of = accepted(token)
    if not expires or not of or expires <= ngx.now() then return ngx.exit(401) end
    subject = of
    verdicts:set(token, subject, expires - ngx.now())
  end
{{- if .Limit}}
  local window = subject .. math.floor(ngx.now())
  if counters:incr(window, 1, 0, 2) > 10000000 then return ngx.exit(429) end
{{- end}}
end
