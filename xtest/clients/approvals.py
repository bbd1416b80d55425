"""An approval-gated mandate, end to end, with the published Python clients, unmodified.

An agent asks, is held, waits; an operator looks and decides; the agent calls. As in
`governed_call.py`, one line a step, and `N passed, 0 failed` at the end.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
import uuid
from typing import Any, Callable

import httpx
from caracalai import ApprovalRequired, Authority, Caracal
from caracalai.advanced import ResourceBinding
from caracalai_admin import AdminApiError, AdminClient, ensure_active_policy_set, ensure_application
from caracalai_oauth import CaracalError

from steps import PATIENCE, eventually, run
from upstreams import Echo

API = os.environ["CARACAL_API_URL"]
STS = os.environ["CARACAL_STS_URL"]
GATEWAY = os.environ["CARACAL_GATEWAY_URL"]
COORDINATOR = os.environ["CARACAL_COORDINATOR_URL"]
ADMIN_TOKEN = os.environ["CARACAL_ADMIN_TOKEN"]

BANK = "resource://bank"
SCOPES = ["bank:read", "bank:transfer"]


class World:
    admin: AdminClient
    approver: AdminClient
    zone: str
    app: str
    secret: str
    echo: Echo

    def client(self) -> Caracal:
        return Caracal.from_client_secret(
            coordinator_url=COORDINATOR,
            sts_url=STS,
            gateway_url=GATEWAY,
            zone_id=self.zone,
            application_id=self.app,
            client_secret=self.secret,
            resources=[ResourceBinding(BANK, self.echo.url)],
        )


W = World()


def policy(tiers: list[dict[str, Any]]) -> str:
    grants = {BANK: {"application": "bank", "roles": {"bank": SCOPES}}}
    risk = [{"scope": "bank:transfer", "tier": "money"}]
    return (
        "# caracal:data-document\npackage caracal.authz\nimport rego.v1\n"
        f"app_ids := {json.dumps({'bank': W.app})}\n"
        f"grants := {json.dumps(grants)}\n"
        f"risk := {json.dumps(risk)}\n"
        f"approval_tiers := {json.dumps(tiers)}\n"
    )


def activate(tiers: list[dict[str, Any]]) -> None:
    ensure_active_policy_set(
        W.admin, W.zone, policy_name="bank", set_name="bank", content=policy(tiers)
    )
    bound = next(s for s in W.admin.policy_sets.list(W.zone) if s["active_version_id"])
    eventually(
        "the policy is loaded",
        lambda: W.admin.policy_sets.activation_status(
            W.zone, bound["id"], version_id=bound["active_version_id"]
        )["propagation_status"]
        == "loaded",
    )


async def a_zone_is_provisioned_with_a_scope_that_needs_an_operator() -> None:
    W.admin = AdminClient(api_url=API, admin_token=ADMIN_TOKEN)
    W.echo = Echo()
    W.zone = W.admin.zones.create({"name": f"approvals {uuid.uuid4().hex[:8]}"})["id"]
    W.secret = "cs_" + uuid.uuid4().hex + uuid.uuid4().hex
    W.app = ensure_application(W.admin, W.zone, name="bank", traits=[], client_secret=W.secret)
    provider = W.admin.providers.create(W.zone, {"identifier": "provider://plain", "kind": "none"})
    W.admin.resources.create(
        W.zone,
        {
            "identifier": BANK,
            "name": "Bank",
            "scopes": SCOPES,
            "upstream_url": W.echo.url,
            "credential_provider_id": provider["id"],
            "operations": [
                {"method": "GET", "path": "/tickets", "scope": "bank:read"},
                {"method": "POST", "path": "/tickets", "scope": "bank:transfer"},
            ],
            "operation_enforcement": "enforced",
        },
    )
    activate([{"tier": "money", "approver": "operator"}])
    made = httpx.post(
        f"{API}/v1/admin-tokens",
        headers={"Authorization": f"Bearer {ADMIN_TOKEN}"},
        json={"name": "approver", "scope": "zone", "zone_id": W.zone, "capability": "approve"},
    )
    assert made.status_code == 201, made.text
    W.approver = AdminClient(api_url=API, admin_token=made.json()["token"])


async def as_agent(act: Callable[[Caracal, Any], Any]) -> None:
    bank = W.client()
    async with bank.session(labels=["bank"]):
        narrow = Authority.narrow(SCOPES, ttl_seconds=600, resource_id=BANK)
        async with bank.session(authority=narrow, labels=["bank"]) as child:
            await act(bank, child)
    await bank.aclose()


def mint(bank: Caracal, child: Any, approval_id: str | None = None) -> Any:
    return bank.mint_mandate(BANK, ["bank:transfer"], ctx=child, approval_id=approval_id)


def held(bank: Caracal, child: Any) -> ApprovalRequired:
    try:
        mint(bank, child)
    except ApprovalRequired as error:
        return error
    raise AssertionError("minted without an approval")


async def a_held_agent_waits_and_calls_once_an_operator_has_approved() -> None:
    async def act(bank: Caracal, child: Any) -> None:
        first = held(bank, child)
        assert held(bank, child).approval_id == first.approval_id, "the same hold"
        assert first.http_status == 401 and len(first.binding) == 64, first
        row = W.approver.approvals.get(W.zone, first.approval_id)
        assert (row["state"], row["tier"]) == ("pending", "money"), row
        assert row["binding"] == first.binding
        assert row["metadata_json"]["requested_scopes"] == ["bank:transfer"], row

        async def decide() -> None:
            await asyncio.sleep(0.2)
            await asyncio.to_thread(
                W.approver.approvals.approve, W.zone, first.approval_id, "known customer"
            )

        async def guarded(approval_id: str | None) -> Any:
            return await asyncio.to_thread(mint, bank, child, approval_id)

        began = time.monotonic()
        minted, _ = await asyncio.gather(bank.with_approval(guarded, timeout_seconds=60), decide())
        assert time.monotonic() - began < PATIENCE, "the decision did not wake who waits"
        call = httpx.post(
            GATEWAY + "/tickets",
            headers={"Authorization": f"Bearer {minted.token}", "X-Caracal-Resource": BANK},
        )
        assert call.status_code == 200, call.text
        row = W.approver.approvals.get(W.zone, first.approval_id)
        assert row["state"] == "consumed" and row["decision_reason"] == "known customer", row
        # The same request again is one more decision.
        assert held(bank, child).approval_id != first.approval_id

    await as_agent(act)


async def a_rejected_agent_is_told_so_and_a_decision_is_final() -> None:
    async def act(bank: Caracal, child: Any) -> None:
        hold = held(bank, child)
        W.approver.approvals.reject(W.zone, hold.approval_id)
        state = await asyncio.to_thread(
            lambda: bank.wait_for_approval(hold.approval_id, timeout_seconds=5)
        )
        assert state == "rejected", state
        try:
            mint(bank, child, hold.approval_id)
            raise AssertionError("minted after a no")
        except CaracalError as error:
            assert (error.http_status, error.code) == (403, "access_denied"), error
        try:
            W.approver.approvals.approve(W.zone, hold.approval_id)
            raise AssertionError("decided twice")
        except AdminApiError as error:
            assert (error.status, error.code) == (409, "approval_not_decidable"), error

    await as_agent(act)


async def nobody_decides_for_the_user() -> None:
    activate([{"tier": "money", "approver": "subject", "ttl_seconds": 120}])

    async def act(bank: Caracal, child: Any) -> None:
        hold = held(bank, child)
        try:
            W.approver.approvals.approve(W.zone, hold.approval_id)
            raise AssertionError("an operator decided for the user")
        except AdminApiError as error:
            assert (error.status, error.code) == (403, "subject_approval_required"), error
        answer = httpx.post(
            f"{STS}/approvals/{hold.approval_id}/decision",
            headers={"Authorization": "Bearer x"},
            json={"decision": "approved", "binding": hold.binding},
        )
        assert answer.status_code == 401, answer.text
        began = time.monotonic()
        state = await asyncio.to_thread(
            lambda: bank.wait_for_approval(hold.approval_id, timeout_seconds=2)
        )
        assert state == "pending" and time.monotonic() - began >= 1.0, "it did not wait"

    await as_agent(act)


async def the_ledger_tells_who_was_asked_and_who_decided() -> None:
    def kinds() -> set[tuple[str, str]]:
        rows = W.admin.audit.list(W.zone)
        rows = rows["items"] if isinstance(rows, dict) else rows
        return {(row["event_type"], row["decision"]) for row in rows}

    expected = {
        ("step_up_issued", "pending"),
        ("step_up_decided", "approved"),
        ("step_up_decided", "rejected"),
        ("step_up_consumed", "consumed"),
    }
    eventually("the events of approvals", lambda: expected <= kinds())


STEPS = [
    a_zone_is_provisioned_with_a_scope_that_needs_an_operator,
    a_held_agent_waits_and_calls_once_an_operator_has_approved,
    a_rejected_agent_is_told_so_and_a_decision_is_final,
    nobody_decides_for_the_user,
    the_ledger_tells_who_was_asked_and_who_decided,
]


if __name__ == "__main__":
    raise SystemExit(run(STEPS, STEPS[0]))
