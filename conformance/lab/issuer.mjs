// An issuer of JWTs on loopback: node issuer.mjs DIRECTORY PORT, where DIRECTORY
// has oidc-provider in its node_modules. A client "ci" with the secret "secret"
// gets access tokens in the form of JWTs by client credentials, for whatever
// audience it names as resource. Of the scopes that it may ask for, "later" makes
// one that is not valid before an hour from now, "other" one of another repository.
import { generateKeyPairSync } from 'node:crypto';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';

const [dir, port] = process.argv.slice(2);
const { default: Provider } = await import(
  pathToFileURL(join(dir, 'node_modules/oidc-provider/lib/index.js')));

const jwk = (kid, alg, type, options) => ({
  ...generateKeyPairSync(type, options).privateKey.export({ format: 'jwk' }), kid, alg, use: 'sig',
});

const provider = new Provider(`http://127.0.0.1:${port}`, {
  clients: [{
    client_id: 'ci', client_secret: 'secret', grant_types: ['client_credentials'],
    redirect_uris: [], response_types: [],
  }],
  jwks: { keys: [
    jwk('r1', 'RS256', 'rsa', { modulusLength: 2048 }),
    jwk('e1', 'ES256', 'ec', { namedCurve: 'P-256' }),
  ] },
  features: {
    devInteractions: { enabled: false },
    clientCredentials: { enabled: true },
    resourceIndicators: {
      enabled: true,
      getResourceServerInfo: (ctx, resource) => ({
        scope: 'pull later other', audience: resource, accessTokenFormat: 'jwt', accessTokenTTL: 300,
        jwt: { sign: { alg: resource.endsWith('/ec') ? 'ES256' : 'RS256' } },
      }),
    },
  },
  extraTokenClaims: (ctx, token) => ({
    repository: token.scope?.includes('other') ? 'evil/app' : 'acme/app',
    ...(token.scope?.includes('later') && { nbf: Math.floor(Date.now() / 1000) + 3600 }),
    ref: 'refs/heads/main', run_attempt: 1,
    'kubernetes.io': { namespace: 'build', serviceaccount: { name: 'puller' } },
  }),
});
provider.listen(Number(port), '127.0.0.1');
