// An OpenID Connect provider: node provider.mjs '{"url", "port", "jwks", "clients", "audience"}'
// Anyone can log in, with any password. Access tokens are JSON Web Tokens for `audience`.
import { Provider } from "oidc-provider";

const { url, port, jwks, clients, audience } = JSON.parse(process.argv[2]);
const resource = "urn:gateway";
const provider = new Provider(url, {
  clients,
  jwks,
  cookies: { keys: ["a key of a test"] },
  claims: { openid: ["sub"], profile: ["name", "groups"] },
  conformIdTokenClaims: false,
  extraTokenClaims: () => ({ groups: ["llm-users"] }),
  findAccount: (_, id) => ({
    accountId: id,
    claims: () => ({ sub: id, name: id, groups: ["llm-users"] }),
  }),
  features: {
    clientCredentials: { enabled: true },
    devInteractions: { enabled: true },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => resource,
      useGrantedResource: () => true,
      getResourceServerInfo: () => ({
        scope: "llm",
        audience,
        accessTokenFormat: "jwt",
        accessTokenTTL: 600,
        jwt: { sign: { alg: "RS256" } },
      }),
    },
  },
});
provider.listen(port, "127.0.0.1", () => console.log("listening"));
