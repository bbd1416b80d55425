"""The governed call, end to end, with the published Python clients, unmodified.

Each step is what a user of those packages would write. The deployment is named by the environment;
the script neither knows nor asks whether it is embedded or distributed. It prints one line a step
and ends with `N passed, 0 failed`, or with the first broken promise and exit code 1.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import os
import threading
import uuid
from typing import Any, Awaitable, Callable

import httpx
import jwt
import redis
from caracalai import AccessDenied, Authority, Caracal, CoordinatorError, DelegationConstraints
from caracalai.advanced import ResourceBinding
from caracalai_admin import (
    GRANT_POLICY_NAME,
    GRANT_POLICY_SET_NAME,
    AdminApiError,
    AdminClient,
    ResourceGrant,
    ensure_active_policy_set,
    ensure_api_key_provider,
    ensure_application,
    ensure_grants,
    ensure_resource,
)
from caracalai_asgi import CaracalASGIAuth
from caracalai_identity import verify_token
from caracalai_oauth import CaracalError, ExchangeOptions, OAuthClient
from caracalai_revocation import InMemoryRevocationStore
from caracalai_revocation_redis import (
    RedisDelegationInvalidationConsumer,
    RedisRevocationConsumer,
    RedisRevocationStore,
)
from caracalai_verify import AuthOptions, create_mandate_verifier

from steps import eventually, run
from upstreams import Echo, serve_asgi

API = os.environ["CARACAL_API_URL"]
STS = os.environ["CARACAL_STS_URL"]
GATEWAY = os.environ["CARACAL_GATEWAY_URL"]
COORDINATOR = os.environ["CARACAL_COORDINATOR_URL"]
AUDIT = os.environ["CARACAL_AUDIT_URL"]
ISSUER = os.environ.get("CARACAL_ISSUER_URL", STS)
ADMIN_TOKEN = os.environ["CARACAL_ADMIN_TOKEN"]
OPERATOR_TOKEN = os.environ["CARACAL_COORDINATOR_TOKEN"]
REDIS_URL = os.environ["CARACAL_TEST_REDIS_URL"]
STREAMS_KEY = bytes.fromhex(os.environ["STREAMS_HMAC_KEY"])

DESK = "resource://desk"
VAULT = "resource://vault"
MANDATED = "resource://mandated"
ARCHIVE = "resource://archive"


class World:
    """What provisioning leaves behind for the steps after it."""

    admin: AdminClient
    operator: AdminClient
    zone: str
    desk_app: str
    desk_secret: str
    helper_app: str
    helper_secret: str
    echo: Echo

    def client(self, app: str, secret: str, *bindings: ResourceBinding) -> Caracal:
        return Caracal.from_client_secret(
            coordinator_url=COORDINATOR,
            sts_url=STS,
            gateway_url=GATEWAY,
            zone_id=self.zone,
            application_id=app,
            client_secret=secret,
            resources=list(bindings) or [ResourceBinding(DESK, self.echo.url)],
        )

    def desk(self) -> Caracal:
        return self.client(
            self.desk_app,
            self.desk_secret,
            ResourceBinding(DESK, self.echo.url),
            ResourceBinding(VAULT, "https://vault.invalid"),
            ResourceBinding(MANDATED, "https://mandated.invalid"),
        )


W = World()


async def all_five_services_are_healthy_and_ready() -> None:
    for base in (API, STS, GATEWAY, COORDINATOR, AUDIT):
        for path in ("/health", "/ready"):
            answer = httpx.get(base + path)
            assert answer.status_code == 200, f"{base}{path}: {answer.status_code} {answer.text}"


async def a_wrong_admin_token_is_named_as_such() -> None:
    try:
        AdminClient(api_url=API, admin_token="wrong").zones.list()
        raise AssertionError("a wrong token was accepted")
    except AdminApiError as error:
        assert (error.status, error.code) == (401, "invalid_admin_token"), error


async def the_admin_client_provisions_everything() -> None:
    W.admin = AdminClient(api_url=API, admin_token=ADMIN_TOKEN)
    W.operator = AdminClient(
        api_url=API,
        admin_token=ADMIN_TOKEN,
        coordinator_url=COORDINATOR,
        coordinator_token=OPERATOR_TOKEN,
    )
    W.echo = Echo()
    W.zone = W.admin.zones.create({"name": f"clients {uuid.uuid4().hex[:8]}"})["id"]
    created = W.admin.applications.create(
        W.zone, {"name": "helper", "registration_method": "managed"}
    )
    W.helper_app, W.helper_secret = created["id"], created["client_secret"]
    assert W.helper_secret.startswith("cs_") and len(W.helper_secret) == 46
    provision()
    W.mandated_url = guard_an_asgi_app()
    mandate = W.admin.providers.create(
        W.zone, {"identifier": "provider://mandate", "kind": "caracal_mandate"}
    )
    W.admin.resources.create(
        W.zone,
        {
            "identifier": MANDATED,
            "name": "Mandated",
            "scopes": ["mandated:read"],
            "upstream_url": W.mandated_url,
            "credential_provider_id": mandate["id"],
            "operation_enforcement": "transport_uniform",
        },
    )
    grant()


def provision() -> None:
    """Everything that the idempotent helpers of the admin package converge."""
    W.desk_secret = getattr(W, "desk_secret", "cs_" + uuid.uuid4().hex + uuid.uuid4().hex)
    W.desk_app = ensure_application(
        W.admin, W.zone, name="desk", traits=[], client_secret=W.desk_secret
    )
    plain = next(
        (p for p in W.admin.providers.list(W.zone) if p["kind"] == "none"), None
    ) or W.admin.providers.create(W.zone, {"identifier": "provider://plain", "kind": "none"})
    ensure_resource(
        W.admin,
        W.zone,
        name="Desk",
        identifier=DESK,
        scopes=["desk:read", "desk:write"],
        upstream_url=W.echo.url,
        credential_provider_id=plain["id"],
        operations=[
            {"method": "GET", "path": "/tickets", "scope": "desk:read"},
            {"method": "GET", "path": "/redirect", "scope": "desk:read"},
            {"method": "POST", "path": "/tickets", "scope": "desk:write"},
        ],
        operation_enforcement="enforced",
    )
    key = ensure_api_key_provider(
        W.admin,
        W.zone,
        name="Vault key",
        identifier="provider://vault-key",
        public_config={"auth_location": "header", "header_name": "X-Api-Key"},
        api_key="vault-api-key-1",
    )
    ensure_resource(
        W.admin,
        W.zone,
        name="Vault",
        identifier=VAULT,
        scopes=["vault:read"],
        upstream_url=W.echo.url + "/vault",
        credential_provider_id=key,
        operations=[],
        operation_enforcement="transport_uniform",
    )
    ensure_resource(
        W.admin,
        W.zone,
        name="Archive",
        identifier=ARCHIVE,
        scopes=["archive:read"],
        upstream_url=W.echo.url + "/archive",
        credential_provider_id=plain["id"],
        operations=[{"method": "GET", "path": "/tickets", "scope": "archive:read"}],
        operation_enforcement="enforced",
    )


def grant() -> None:
    ensure_grants(
        W.admin,
        W.zone,
        grants=[
            ResourceGrant(W.desk_app, DESK, ["desk:read", "desk:write"]),
            ResourceGrant(W.desk_app, VAULT, ["vault:read"]),
            ResourceGrant(W.desk_app, MANDATED, ["mandated:read"]),
        ],
    )
    the_grants_are_loaded()


def the_grants_are_loaded() -> None:
    bound = next(s for s in W.admin.policy_sets.list(W.zone) if s["active_version_id"])
    eventually(
        "propagation_status loaded",
        lambda: W.admin.policy_sets.activation_status(
            W.zone, bound["id"], version_id=bound["active_version_id"]
        )["propagation_status"]
        == "loaded",
    )


async def a_second_provisioning_changes_nothing() -> None:
    def state() -> Any:
        policy = next(p for p in W.admin.policies.list(W.zone) if p["name"] == "application-grants")
        rows = W.admin.resources.list(W.zone) + W.admin.providers.list(W.zone)
        versions = W.admin.policies.get(W.zone, policy["id"])["versions"]
        return [(row["id"], row["updated_at"]) for row in rows], len(versions)

    before = state()
    ensure_resource_again = {
        row["identifier"]: row for row in W.admin.resources.list(W.zone)
    }[DESK]
    ensure_resource(
        W.admin,
        W.zone,
        name="Desk",
        identifier=DESK,
        scopes=["desk:read", "desk:write"],
        upstream_url=ensure_resource_again["upstream_url"],
        credential_provider_id=ensure_resource_again["credential_provider_id"],
        operations=ensure_resource_again["operations"],
        operation_enforcement="enforced",
    )
    grant()
    assert state() == before


async def a_bad_grants_document_is_refused() -> None:
    try:
        W.admin.policies.create(W.zone, {"name": "bad", "content": "package x\nallow := true\n"})
        raise AssertionError("accepted")
    except AdminApiError as error:
        assert (error.status, error.code) == (422, "invalid_rego"), error


async def exchange_denials_carry_the_codes_of_the_contract() -> None:
    async def refused(status: int, code: str, app: str, zone: str, resource: str, **options: Any) -> None:
        client = OAuthClient(STS, zone, app)
        try:
            await client.exchange("", resource, ExchangeOptions(**options))
        except CaracalError as error:
            assert (error.http_status, error.code) == (status, code), (error, error.http_status)
            assert error.request_id
        else:
            raise AssertionError(f"{resource} {options} was granted")
        finally:
            await client.aclose()

    other = W.admin.zones.create({"name": f"other {uuid.uuid4().hex[:8]}"})["id"]
    good = {"client_secret": W.desk_secret, "scopes": ["agent:lifecycle"]}
    await refused(401, "access_denied", W.desk_app, W.zone, DESK, client_secret="cs_wrong")
    await refused(401, "access_denied", "no-such-app", W.zone, DESK, client_secret="cs_wrong")
    await refused(403, "zone_invalid", W.desk_app, other, DESK, **good)
    await refused(403, "access_denied", W.desk_app, W.zone, "resource://nowhere", **good)
    # A business scope without a Delegation is never granted.
    await refused(
        403, "access_denied", W.desk_app, W.zone, DESK,
        client_secret=W.desk_secret, scopes=["desk:read"],
    )


async def a_narrowed_session_mints_calls_and_cannot_widen() -> None:
    desk = W.desk()
    async with desk.session(labels=[W.desk_app], task="triage"):
        narrow = Authority.narrow(["desk:read"], ttl_seconds=300, resource_id=DESK)
        async with desk.session(authority=narrow, labels=[W.desk_app]) as child:
            first = desk.mint_mandate(DESK, ["desk:read"], ctx=child)
            first = await first if asyncio.iscoroutine(first) else first
            claims = jwt.decode(first.token, options={"verify_signature": False})
            assert claims["use"] == "gateway" and claims["hop_count"] == 1, claims
            assert claims["delegation_path"] == [child.delegation_id]
            assert len(claims["delegation_chain"]) == 2
            answer = await desk.fetch(DESK, "/tickets", ctx=child, scopes=["desk:read"])
            assert answer.status_code == 200, answer.text
            seen = answer.json()
            assert "authorization" not in seen["headers"], "provider kind none: nothing is added"
            assert not any(name.startswith("x-caracal-") for name in seen["headers"]), seen
            assert "x-powered-by" not in answer.headers
            assert seen["headers"]["x-request-id"] == answer.headers["x-request-id"]
            for scopes in (["desk:write"], ["desk:read", "desk:write"], ["vault:read"]):
                try:
                    await maybe(desk.mint_mandate(DESK, scopes, ctx=child))
                    raise AssertionError(f"{scopes} was granted")
                except AccessDenied as error:
                    assert error.http_status == 403, error
            wrong = await desk.fetch(
                DESK, "/tickets", method="POST", ctx=child, scopes=["desk:read"]
            )
            assert wrong.status_code == 403, wrong.text
            assert wrong.json()["error"] == "operation_not_permitted"
            bounced = await desk.fetch(DESK, "/redirect", ctx=child, scopes=["desk:read"])
            assert bounced.status_code == 302 and "location" not in bounced.headers
    await desk.aclose()


async def maybe(value: Any) -> Any:
    return await value if asyncio.iscoroutine(value) else value


async def a_child_inherits_with_default_hops_and_none_inherits_nothing() -> None:
    desk = W.desk()
    async with desk.session(labels=[W.desk_app]):
        narrow = Authority.narrow(["desk:read"], ttl_seconds=300, resource_id=DESK)
        async with desk.session(authority=narrow, labels=[W.desk_app]):
            async with desk.session(authority=Authority.inherit(), labels=[W.desk_app]) as inheriting:
                assert inheriting.delegation_id
                minted = await maybe(desk.mint_mandate(DESK, ["desk:read"], ctx=inheriting))
                claims = jwt.decode(minted.token, options={"verify_signature": False})
                assert claims["hop_count"] == 2, claims
            async with desk.session(authority=Authority.none(), labels=[W.desk_app]) as without:
                assert not without.delegation_id
                try:
                    await maybe(desk.mint_mandate(DESK, ["desk:read"], ctx=without))
                    raise AssertionError("granted without authority")
                except AccessDenied:
                    pass
    await desk.aclose()


def grant_the_archive_by_alias() -> None:
    """A document as a person writes it: two names for one application, and roles of their own."""
    app_ids = {W.desk_app: W.desk_app, "archivist": W.helper_app, "archivist-at-night": W.helper_app}
    grants = {
        DESK: {"application": W.desk_app, "roles": {W.desk_app: ["desk:read", "desk:write"]}},
        ARCHIVE: {"application": "archivist-at-night", "roles": {"reader": ["archive:read"]}},
    }
    lines = [
        "# caracal:data-document",
        "package caracal.authz",
        "import rego.v1",
        f"app_ids := {json.dumps(app_ids)}",
        f"grants := {json.dumps(grants)}",
    ]
    ensure_active_policy_set(
        W.admin,
        W.zone,
        policy_name=GRANT_POLICY_NAME,
        set_name=GRANT_POLICY_SET_NAME,
        content="\n".join(lines) + "\n",
    )
    the_grants_are_loaded()


async def a_delegation_crosses_applications_and_is_revoked() -> None:
    grant_the_archive_by_alias()
    desk = W.desk()
    helper = W.client(W.helper_app, W.helper_secret, ResourceBinding(ARCHIVE, W.echo.url + "/archive"))
    async with desk.session(labels=[W.desk_app]):
        ours = contextvars.copy_context()

        async def at_the_desk(work: Awaitable[Any]) -> Any:
            return await asyncio.create_task(work, context=ours)

        async def at_the_helper() -> None:
            async with helper.session(labels=["reader"]) as theirs:
                given = await at_the_desk(
                    desk.delegate(
                        to_session_id=theirs.session_id,
                        to_application_id=W.helper_app,
                        scopes=["archive:read"],
                        ttl_seconds=300,
                        resource_id=ARCHIVE,
                    )
                )
                async with helper.accept_delegation(given.delegation_id, validate=True) as accepted:
                    await the_helper_works(given.delegation_id, accepted)

        async def the_helper_works(delegation: str, accepted: Any) -> None:
            answer = await helper.fetch(ARCHIVE, "/tickets", ctx=accepted, scopes=["archive:read"])
            assert answer.status_code == 200, answer.text
            minted = await maybe(helper.mint_mandate(ARCHIVE, ["archive:read"], ctx=accepted))
            claims = jwt.decode(minted.token, options={"verify_signature": False})
            hops = [hop["application_id"] for hop in claims["delegation_chain"]]
            assert hops == [W.desk_app, W.helper_app], claims
            assert claims["sub"] == claims["client_id"] == W.helper_app, claims
            await at_the_desk(desk.revoke_delegation(delegation))
            answer = eventually(
                "the minted mandate is refused",
                lambda: (got := gateway(minted.token, resource=ARCHIVE)).status_code == 401 and got,
            )
            assert answer.json()["error"] == "invalid_token", answer.text
            is_denied(lambda: helper.mint_mandate(ARCHIVE, ["archive:read"], ctx=accepted))

        # A process of its own has a context of its own.
        await asyncio.create_task(at_the_helper(), context=contextvars.Context())
    await desk.aclose()
    await helper.aclose()
    grant()


def is_denied(mint: Callable[[], Any]) -> None:
    try:
        mint()
    except AccessDenied as error:
        assert error.http_status == 403, error
    else:
        raise AssertionError("granted")


def gateway(token: str, path: str = "/tickets", resource: str = DESK) -> httpx.Response:
    return httpx.get(
        GATEWAY + path,
        headers={"Authorization": f"Bearer {token}", "X-Caracal-Resource": resource},
    )


async def self_and_broad_delegations_are_refused() -> None:
    desk = W.desk()
    # Outside of a block: inside, it would be a service below a task, which may not be.
    peer = await desk.start_session(labels=[W.desk_app])
    async with desk.session(labels=[W.desk_app]) as context:
        try:
            await desk.delegate(
                to_session_id=context.session_id,
                scopes=["desk:read"],
                ttl_seconds=60,
                resource_id=DESK,
            )
            raise AssertionError("a Session delegated to itself")
        except CoordinatorError as error:
            assert (error.status, error.code) == (400, "self_delegation_denied"), error
        for wish, code in (
            ({"scopes": ["desk:read"]}, "broad_delegation_permission_required"),
            ({"scopes": ["desk:admin"], "resource_id": DESK}, "delegation_scopes_exceed_resource"),
        ):
            try:
                await desk.delegate(to_session_id=peer.session_id, ttl_seconds=60, **wish)
                raise AssertionError(f"{code} was not raised")
            except CoordinatorError as error:
                assert (error.status, error.code) == (403, code), error
        constrained = await desk.delegate(
            to_session_id=peer.session_id,
            scopes=["desk:read"],
            ttl_seconds=60,
            constraints=DelegationConstraints(resources=[DESK]),
        )
        assert constrained.delegation_id
    await peer.aclose()
    await desk.aclose()


async def a_mandate_is_good_for_one_call_and_the_replay_is_recorded() -> None:
    desk = W.desk()
    async with desk.session(labels=[W.desk_app]):
        narrow = Authority.narrow(["desk:read"], ttl_seconds=300, resource_id=DESK)
        async with desk.session(authority=narrow, labels=[W.desk_app]) as child:
            minted = await maybe(desk.mint_mandate(DESK, ["desk:read"], ctx=child))
            async with httpx.AsyncClient() as http:
                answers = await asyncio.gather(
                    *(
                        http.get(
                            GATEWAY + "/tickets",
                            headers={
                                "Authorization": f"Bearer {minted.token}",
                                "X-Caracal-Resource": DESK,
                            },
                        )
                        for _ in range(16)
                    )
                )
            codes = sorted(answer.status_code for answer in answers)
            assert codes == [200] + [401] * 15, codes
            replay = next(a for a in answers if a.status_code == 401)
            assert replay.json()["error"] == "invalid_token"
            recorded = eventually(
                "the replay in the ledger",
                lambda: by_request(replay.json()["requestId"]),
            )
            assert {"replay_detected"} & {event["event_type"] for event in recorded}, recorded
    await desk.aclose()


def by_request(request_id: str) -> list[dict[str, Any]]:
    try:
        return W.admin.audit.by_request(W.zone, request_id)
    except AdminApiError as error:
        assert error.status == 404, error
        return []


async def the_ledger_explains_what_was_allowed_and_what_was_denied() -> None:
    desk = W.desk()
    async with desk.session(labels=[W.desk_app]):
        narrow = Authority.narrow(["desk:read"], ttl_seconds=300, resource_id=DESK)
        async with desk.session(authority=narrow, labels=[W.desk_app]) as child:
            answer = await desk.fetch(DESK, "/tickets", ctx=child, scopes=["desk:read"])
            request_id = answer.headers["x-request-id"]
            events = eventually(
                "both events of the call",
                lambda: len(found := by_request(request_id)) >= 2 and found,
            )
            kinds = [event["event_type"] for event in events]
            assert sorted(kinds) == ["gateway_resource_request", "token_exchange"], kinds
            assert all(event["decision"] == "allow" for event in events)
            try:
                await maybe(desk.mint_mandate(DESK, ["desk:write"], ctx=child))
                raise AssertionError("granted")
            except AccessDenied as error:
                denied = error.request_id
            eventually("the denial in the ledger", lambda: by_request(denied))
            explained = W.admin.audit.explain(W.zone, denied)
            assert explained["final_decision"] == "deny", explained
            assert explained["denied"], explained
    await desk.aclose()


async def the_gateway_injects_the_credential_and_replaces_a_forged_one() -> None:
    desk = W.desk()
    async with desk.session(labels=[W.desk_app]):
        narrow = Authority.narrow(["vault:read"], ttl_seconds=300, resource_id=VAULT)
        async with desk.session(authority=narrow, labels=[W.desk_app]) as child:
            answer = await desk.fetch(
                VAULT,
                "/secrets?b=2&a=1",
                ctx=child,
                scopes=["vault:read"],
                headers={"X-Api-Key": "forged"},
            )
            assert answer.status_code == 200, answer.text
            seen = answer.json()
            assert seen["headers"]["x-api-key"] == "vault-api-key-1", seen
            assert seen["path"] == "/vault/secrets?b=2&a=1", seen["path"]
            assert "vault-api-key-1" not in str(answer.headers)
    await desk.aclose()


def guard_an_asgi_app() -> str:
    """A resource server of its own, which verifies the mandate that the Gateway hands it."""
    W.revocations = InMemoryRevocationStore()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        principal = scope["state"]["caracal"]
        sub = getattr(principal, "sub", None) or principal["sub"]
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-type", b"text/plain")],
            }
        )
        await send({"type": "http.response.body", "body": str(sub).encode()})

    guarded = CaracalASGIAuth(
        app,
        issuer=ISSUER,
        audience=MANDATED,
        expected_zone_id=W.zone,
        revocations=W.revocations,
        required_scopes=["mandated:read"],
        require_session=True,
        require_delegation=True,
    )

    async def remember(scope: Any, receive: Any, send: Any) -> None:
        headers = dict(scope.get("headers") or [])
        W.last_resource_token = headers.get(b"authorization", b"").decode().removeprefix("Bearer ")
        await guarded(scope, receive, send)

    return serve_asgi(remember)


async def an_asgi_app_verifies_the_resource_mandate() -> None:
    bare = httpx.get(W.mandated_url)
    assert bare.status_code == 401 and bare.json()["error"] == "missing_token", bare.text
    desk = W.desk()
    async with desk.session(labels=[W.desk_app]):
        narrow = Authority.narrow(["mandated:read"], ttl_seconds=300, resource_id=MANDATED)
        async with desk.session(authority=narrow, labels=[W.desk_app]) as child:
            answer = await desk.fetch(MANDATED, "/", ctx=child, scopes=["mandated:read"])
            assert (answer.status_code, answer.text) == (200, W.desk_app), answer.text
            token = W.last_resource_token
            claims = jwt.decode(token, options={"verify_signature": False})
            assert claims["use"] == "resource" and claims["aud"] == [MANDATED], claims
            checked = await maybe(verify_token(token, ISSUER, MANDATED, W.zone, ["mandated:read"]))
            assert checked
            verifier = create_mandate_verifier(
                AuthOptions(
                    issuer=ISSUER,
                    audience=MANDATED,
                    revocations=W.revocations,
                    expected_zone_id=W.zone,
                    required_scopes=["mandated:write"],
                )
            )
            result = await maybe(verifier.authenticate(token))
            assert result.error and result.error.code == "insufficient_scope", result
            ingress = await maybe(desk.mint_mandate(MANDATED, ["mandated:read"], ctx=child))
            direct = httpx.get(
                W.mandated_url, headers={"Authorization": f"Bearer {ingress.token}"}
            )
            assert direct.status_code == 401, "a gateway mandate is not for resource servers"
    await desk.aclose()


async def a_revocation_reaches_a_resource_server_through_redis() -> None:
    client = redis.Redis.from_url(REDIS_URL)
    prefix = f"caracal:revoked:{uuid.uuid4().hex[:8]}:"
    store = RedisRevocationStore(client, key_prefix=prefix)
    revoked = RedisRevocationConsumer(
        client,
        store,
        consumer="xtest",
        group=f"xtest-{uuid.uuid4().hex[:8]}",
        block_ms=200,
        stream_hmac_key=STREAMS_KEY,
        require_signature=True,
    )
    epochs = RedisDelegationInvalidationConsumer(
        client,
        store,
        consumer="xtest",
        group=f"xtest-{uuid.uuid4().hex[:8]}",
        block_ms=200,
        stream_hmac_key=STREAMS_KEY,
        require_signature=True,
    )
    for consumer in (revoked, epochs):
        await maybe(consumer.ensure_group())

    def poll(consumer: Any) -> None:
        result = consumer.poll_once()
        if asyncio.iscoroutine(result):
            asyncio.run(result)

    def poll_apart() -> None:
        threads = [threading.Thread(target=poll, args=(c,)) for c in (revoked, epochs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    desk = W.desk()
    peer = await desk.start_session(labels=[W.desk_app])
    async with desk.session(labels=[W.desk_app]) as parent:
        given = await desk.delegate(
            to_session_id=peer.session_id, scopes=["desk:read"], ttl_seconds=300, resource_id=DESK
        )
        assert not await maybe(store.is_revoked(given.delegation_id))
        before = await maybe(store.current_delegation_epoch(W.zone))
        await desk.revoke_delegation(given.delegation_id)

        def arrived() -> bool:
            poll_apart()
            return asyncio.run(marked())

        async def marked() -> bool:
            return all(
                [
                    await maybe(store.is_revoked(given.delegation_id)),
                    await maybe(store.is_revoked(peer.session_id)),
                    await maybe(store.current_delegation_epoch(W.zone)) > before,
                ]
            )

        await asyncio.to_thread(eventually, "the anchors and the epoch in Redis", arrived)
        assert not await maybe(store.is_revoked(parent.session_id)), "a live peer is not revoked"
    await desk.aclose()


async def ending_a_session_kills_what_was_minted_in_it() -> None:
    desk = W.desk()
    async with desk.session(labels=[W.desk_app]):
        narrow = Authority.narrow(["desk:read"], ttl_seconds=300, resource_id=DESK)
        async with desk.session(authority=narrow, labels=[W.desk_app]) as child:
            minted = await maybe(desk.mint_mandate(DESK, ["desk:read"], ctx=child))
    answer = eventually(
        "the minted mandate is refused",
        lambda: (got := gateway(minted.token)).status_code == 401 and got,
    )
    assert answer.json()["error"] == "invalid_token", answer.text
    await desk.aclose()


async def application_transports_work_in_both_kinds_and_retire_their_sessions() -> None:
    desk = W.desk()
    transport = await maybe(desk.application_transport(DESK, scopes=["desk:read"]))
    async with transport as http:
        for _ in range(3):
            answer = await http.get(W.echo.url + "/tickets")
            assert answer.status_code == 200, answer.text
    with desk.sync_application_transport(DESK, scopes=["desk:read"]) as http:
        answer = await asyncio.to_thread(http.get, W.echo.url + "/tickets")
        assert answer.status_code == 200, answer.text
    await desk.aclose()


async def a_service_keeps_its_lease_and_a_new_holder_fences_the_old() -> None:
    desk = W.desk()
    service = await maybe(desk.start_session(labels=[W.desk_app], heartbeat_interval=3600))
    await service.heartbeat()
    taken = await maybe(desk.attach_session(service.session_id, heartbeat_interval=3600))
    try:
        await service.heartbeat()
        fenced = None
    except CoordinatorError as error:
        fenced = error.code
    assert fenced in (None, "session_lease_fenced"), fenced
    await taken.heartbeat()
    await taken.aclose()
    await service.aclose()
    await desk.aclose()


async def the_operator_sees_and_stops_sessions() -> None:
    desk = W.desk()
    async with desk.session(labels=[W.desk_app]) as parent:
        narrow = Authority.narrow(["desk:read"], ttl_seconds=300, resource_id=DESK)
        async with desk.session(authority=narrow, labels=[W.desk_app]) as child:
            seen = W.operator.sessions.get(W.zone, child.session_id)
            assert seen["parent_session_id"] == parent.session_id, seen
            children = W.operator.sessions.children(W.zone, parent.session_id)
            items = children["items"] if isinstance(children, dict) else children
            assert [item["session_id"] for item in items] == [child.session_id], items
            effective = W.operator.sessions.effective_authority(W.zone, child.session_id)
            assert effective["effective_scopes"] == ["desk:read"], effective
            inbound = W.operator.delegations.inbound(W.zone, child.session_id)
            assert [edge["delegation_id"] for edge in inbound] == [child.delegation_id], inbound
            assert W.operator.sessions.suspend(W.zone, child.session_id) == {"suspended": 1}
            try:
                await maybe(desk.mint_mandate(DESK, ["desk:read"], ctx=child))
                raise AssertionError("a suspended Session mints")
            except AccessDenied:
                pass
            assert W.operator.sessions.resume(W.zone, child.session_id) == {"resumed": 1}
            assert await maybe(desk.mint_mandate(DESK, ["desk:read"], ctx=child))
            impact = W.operator.delegations.impact(W.zone, child.delegation_id)
            assert impact["affected_sessions"] == [child.session_id], impact
    await desk.aclose()


async def a_rotated_secret_ends_the_old_one_and_a_deleted_application_is_refused() -> None:
    app = W.admin.applications.create(W.zone, {"name": "brief", "registration_method": "managed"})

    async def works(secret: str) -> bool:
        client = OAuthClient(STS, W.zone, app["id"])
        try:
            await client.exchange("", DESK, ExchangeOptions(client_secret=secret, scopes=["agent:lifecycle"]))
        except CaracalError as error:
            # 403 is policy: the credential itself was accepted.
            assert error.http_status in (401, 403), error
            return error.http_status == 403
        finally:
            await client.aclose()
        return True

    assert await works(app["client_secret"])
    fresh = W.admin.applications.rotate_secret(W.zone, app["id"])["client_secret"]
    for _ in range(500):
        if not await works(app["client_secret"]):
            break
        await asyncio.sleep(0.01)
    assert not await works(app["client_secret"])
    assert await works(fresh)
    W.admin.applications.delete(W.zone, app["id"])
    for _ in range(500):
        if not await works(fresh):
            break
        await asyncio.sleep(0.01)
    assert not await works(fresh)


async def a_narrowed_policy_stops_mandates_that_were_minted_before() -> None:
    desk = W.desk()
    async with desk.session(labels=[W.desk_app]):
        narrow = Authority.narrow(["desk:read"], ttl_seconds=300, resource_id=DESK)
        async with desk.session(authority=narrow, labels=[W.desk_app]) as child:
            minted = [
                await maybe(desk.mint_mandate(DESK, ["desk:read"], ctx=child)) for _ in range(2)
            ]
            ensure_grants(
                W.admin, W.zone, grants=[ResourceGrant(W.desk_app, DESK, ["desk:write"])]
            )
            the_grants_are_loaded()
            assert gateway(minted[0].token).status_code == 403
            grant()
            assert gateway(minted[1].token).status_code == 200
    await desk.aclose()


async def what_administrators_did_is_on_record() -> None:
    rows = W.admin.admin_audit.list(W.zone, {"entity_type": "applications", "method": "POST"})
    made = [row for row in rows if row["action"] == f"POST /v1/zones/{W.zone}/applications"]
    assert {W.desk_app, W.helper_app} <= {row["entity_id"] for row in made}, rows
    for row in made:
        assert isinstance(row["chain_seq"], int) and row["signed"] is True, row
        assert row["status_code"] == 201 and row["payload_json"]["change_kind"] == "create", row
        assert "name" in row["payload_json"]["changed_fields"], row
    assert W.desk_secret not in json.dumps(rows)
    rows = W.admin.admin_audit.list(W.zone)
    # By time: what was committed at the same moment may have its places the other way round.
    times = [row["occurred_at"] for row in rows]
    assert times == sorted(times, reverse=True), times
    places = [row["chain_seq"] for row in rows]
    assert len(set(places)) == len(places), places


STEPS: list[Callable[[], Awaitable[None]]] = [
    all_five_services_are_healthy_and_ready,
    a_wrong_admin_token_is_named_as_such,
    the_admin_client_provisions_everything,
    a_second_provisioning_changes_nothing,
    a_bad_grants_document_is_refused,
    exchange_denials_carry_the_codes_of_the_contract,
    a_narrowed_session_mints_calls_and_cannot_widen,
    a_child_inherits_with_default_hops_and_none_inherits_nothing,
    a_delegation_crosses_applications_and_is_revoked,
    self_and_broad_delegations_are_refused,
    a_mandate_is_good_for_one_call_and_the_replay_is_recorded,
    the_ledger_explains_what_was_allowed_and_what_was_denied,
    the_gateway_injects_the_credential_and_replaces_a_forged_one,
    an_asgi_app_verifies_the_resource_mandate,
    a_revocation_reaches_a_resource_server_through_redis,
    ending_a_session_kills_what_was_minted_in_it,
    application_transports_work_in_both_kinds_and_retire_their_sessions,
    a_service_keeps_its_lease_and_a_new_holder_fences_the_old,
    the_operator_sees_and_stops_sessions,
    a_rotated_secret_ends_the_old_one_and_a_deleted_application_is_refused,
    a_narrowed_policy_stops_mandates_that_were_minted_before,
    what_administrators_did_is_on_record,
]


if __name__ == "__main__":
    raise SystemExit(run(STEPS, the_admin_client_provisions_everything))
