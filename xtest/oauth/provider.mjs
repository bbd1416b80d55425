// A certified OpenID provider (npm: oidc-provider) for the tests of upstream credentials and of users,
// with a browser beside it: GET CONTROL/browse?url= signs in and answers where it was sent in the end,
// GET CONTROL/id-token?client= what a client gets for that.
//
//   node provider.mjs ADDRESS PORT CONTROL_PORT CERTIFICATE KEY CALLBACK
import { createHash, randomBytes } from 'node:crypto';
import http from 'node:http';
import https from 'node:https';
import { readFileSync } from 'node:fs';
import Provider from 'oidc-provider';

const [address, port, controlPort, certificate, key, callback] = process.argv.slice(2);
const issuer = `https://${address}:${port}`;
const publicKey = JSON.parse(process.env.CLIENT_JWK);

const provider = new Provider(issuer, {
  clients: [
    { client_id: 'service', client_secret: 'service-secret', grant_types: ['client_credentials'], redirect_uris: [], response_types: [] },
    { client_id: 'signer', token_endpoint_auth_method: 'private_key_jwt', token_endpoint_auth_signing_alg: 'ES256', jwks: { keys: [publicKey] }, grant_types: ['client_credentials'], redirect_uris: [], response_types: [] },
    { client_id: 'web', client_secret: 'web-secret', token_endpoint_auth_method: 'client_secret_post', grant_types: ['authorization_code', 'refresh_token'], redirect_uris: [callback] },
    { client_id: 'other', client_secret: 'other-secret', token_endpoint_auth_method: 'client_secret_post', redirect_uris: [callback] },
  ],
  features: { clientCredentials: { enabled: true }, devInteractions: { enabled: false }, revocation: { enabled: true } },
  scopes: ['openid', 'offline_access', 'mail'],
  pkce: { required: () => true },
  ttl: { ClientCredentials: 600, AccessToken: 20, RefreshToken: 3600, Session: 600, Interaction: 600, Grant: 3600, IdToken: 60 },
  rotateRefreshToken: true,
  findAccount: (_, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
  interactions: { url: (_, interaction) => `/sign-in/${interaction.uid}` },
  cookies: { keys: ['only for tests'] },
});

async function signIn(request, response) {
  const { prompt, params, session } = await provider.interactionDetails(request, response);
  let result = { login: { accountId: 'alice' } };
  if (prompt.name === 'consent') {
    const grant = new provider.Grant({ accountId: session.accountId, clientId: params.client_id });
    grant.addOIDCScope(params.scope);
    result = { consent: { grantId: await grant.save() } };
  }
  await provider.interactionFinished(request, response, result, { mergeWithLastSubmission: true });
}

const app = provider.callback();
const asked = {};
const tls = { cert: readFileSync(certificate), key: readFileSync(key) };
https.createServer(tls, (request, response) => {
  const path = new URL(request.url, issuer).pathname;
  asked[path] = (asked[path] ?? 0) + 1;
  if (!path.startsWith('/sign-in/')) return app(request, response);
  signIn(request, response).catch((error) => response.writeHead(500).end(String(error)));
}).listen(Number(port), address);

// Redirects until it is sent away from the provider; cookies are kept as a browser keeps them.
async function browse(url) {
  const jar = new Map();
  for (let hops = 0; hops < 12 && url.startsWith(issuer); hops += 1) {
    const answer = await new Promise((resolve, reject) => {
      const cookie = [...jar].map(([name, value]) => `${name}=${value}`).join('; ');
      https.get(url, { ca: tls.cert, headers: { cookie } }, resolve).on('error', reject);
    });
    answer.resume();
    for (const line of answer.headers['set-cookie'] ?? []) {
      const [pair] = line.split(';');
      jar.set(pair.slice(0, pair.indexOf('=')), pair.slice(pair.indexOf('=') + 1));
    }
    if (!answer.headers.location) throw new Error(`${answer.statusCode} from ${url}`);
    url = new URL(answer.headers.location, url).href;
  }
  return url;
}

// The ID token of whoever signs in at this client: the authorization code flow, with PKCE.
async function idToken(client) {
  const verifier = randomBytes(32).toString('base64url');
  const challenge = createHash('sha256').update(verifier).digest('base64url');
  const wish = new URLSearchParams({
    client_id: client, redirect_uri: callback, response_type: 'code', scope: 'openid',
    code_challenge: challenge, code_challenge_method: 'S256',
  });
  const code = new URL(await browse(`${issuer}/auth?${wish}`)).searchParams.get('code');
  const form = new URLSearchParams({
    grant_type: 'authorization_code', code, redirect_uri: callback, code_verifier: verifier,
    client_id: client, client_secret: `${client}-secret`,
  });
  const headers = { 'content-type': 'application/x-www-form-urlencoded' };
  const answer = await new Promise((resolve, reject) => {
    https.request(`${issuer}/token`, { method: 'POST', ca: tls.cert, headers }, resolve).on('error', reject).end(`${form}`);
  });
  let text = '';
  for await (const chunk of answer) text += chunk;
  return JSON.parse(text).id_token;
}

async function about(value) {
  for (const kind of ['ClientCredentials', 'AccessToken', 'RefreshToken']) {
    const found = await provider[kind].find(value);
    if (found) return { kind, client: found.clientId, account: found.accountId ?? null, live: !found.isExpired };
  }
  return { kind: null };
}

http.createServer(async (request, response) => {
  const url = new URL(request.url, 'http://control');
  const json = (body) => response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(body));
  try {
    if (url.pathname === '/browse') return json({ location: await browse(url.searchParams.get('url')) });
    if (url.pathname === '/id-token') return json({ id_token: await idToken(url.searchParams.get('client')) });
    if (url.pathname === '/about') return json(await about(url.searchParams.get('token')));
    return json({ asked });
  } catch (error) {
    return response.writeHead(500).end(String(error));
  }
}).listen(Number(controlPort), address);
