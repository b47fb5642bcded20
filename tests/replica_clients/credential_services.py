"""Small servers of the protocols by which AWS gives out credentials, and the settings that lead there."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

Answer = Callable[[str, str, dict[str, str]], bytes]
ROLE = "arn:aws:iam::123456789012:role/reader"
START_URL = "https://example.awsapps.com/start"
LIFETIME_S = 3600


@dataclass
class Giver:
    """Gives out one set of temporary credentials after the other; `rotate` makes the next."""

    number: int = 1
    calls: list[str] = field(default_factory=list)

    @property
    def key(self) -> str:
        return f"TEMPORARYKEY{self.number}"

    @property
    def secret(self) -> str:
        return f"the/secret+{self.number}"

    @property
    def token(self) -> str:
        return f"the-token-{self.number}"

    def rotate(self) -> None:
        self.number += 1


def iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def http_answer(body: str, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


def as_json(giver: Giver) -> str:
    """As container and instance metadata and a credential process write them."""
    until = iso(time.time() + LIFETIME_S)
    fields = {"AccessKeyId": giver.key, "SecretAccessKey": giver.secret, "Token": giver.token, "Expiration": until}
    return json.dumps({"Code": "Success", "Type": "AWS-HMAC", "LastUpdated": iso(time.time()), **fields})


def token_service(giver: Giver) -> Answer:
    """STS: AssumeRole and AssumeRoleWithWebIdentity."""

    def answer(method: str, target: str, headers: dict[str, str]) -> bytes:
        giver.calls.append(f"{method} {target}")
        until = iso(time.time() + LIFETIME_S)
        given = f"<AccessKeyId>{giver.key}</AccessKeyId><SecretAccessKey>{giver.secret}</SecretAccessKey>"
        given += f"<SessionToken>{giver.token}</SessionToken><Expiration>{until}</Expiration>"
        is_signed = "authorization" in headers
        name = "AssumeRole" if is_signed else "AssumeRoleWithWebIdentity"
        return http_answer(
            f"<{name}Response><{name}Result><Credentials>{given}</Credentials></{name}Result></{name}Response>"
        )

    return answer


def container_service(giver: Giver) -> Answer:
    """ECS, and EKS Pod Identity: one GET with a token."""

    def answer(method: str, target: str, headers: dict[str, str]) -> bytes:
        giver.calls.append(f"{method} {target}")
        if headers.get("authorization") != "the-container-token":
            return http_answer("{}", "403 Forbidden")
        return http_answer(as_json(giver))

    return answer


def instance_service(giver: Giver) -> Answer:
    """EC2's instance metadata, version 2: a session token first."""

    def answer(method: str, target: str, headers: dict[str, str]) -> bytes:
        giver.calls.append(f"{method} {target}")
        if method == "PUT" and target == "/latest/api/token":
            return http_answer("a-session")
        if headers.get("x-aws-ec2-metadata-token") != "a-session":
            return http_answer("", "401 Unauthorized")
        root = "/latest/meta-data/iam/security-credentials/"
        return http_answer({root: "the-role", f"{root}the-role": as_json(giver)}.get(target, ""))

    return answer


def sso_portal(giver: Giver) -> Answer:
    """IAM Identity Center's portal: role credentials for the token of a sign-in."""

    def answer(method: str, target: str, headers: dict[str, str]) -> bytes:
        giver.calls.append(f"{method} {target}")
        asked = parse_qs(urlsplit(target).query)
        if headers.get("x-amz-sso_bearer_token") != "the-sign-in" or asked.get("role_name") != ["reader"]:
            return http_answer("{}", "401 Unauthorized")
        fields = {"accessKeyId": giver.key, "secretAccessKey": giver.secret, "sessionToken": giver.token}
        return http_answer(
            json.dumps({"roleCredentials": {**fields, "expiration": int((time.time() + LIFETIME_S) * 1000)}})
        )

    return answer


def web_identity(folder: Path, endpoint: str) -> dict[str, str]:
    (folder / "token").write_text("a-token-of-kubernetes")
    return {
        "AWS_WEB_IDENTITY_TOKEN_FILE": str(folder / "token"),
        "AWS_ROLE_ARN": ROLE,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL_STS": endpoint,
    }


def assume_role(folder: Path, endpoint: str) -> dict[str, str]:
    (folder / "config").write_text(
        f"[profile reader]\nrole_arn = {ROLE}\nsource_profile = base\nregion = us-east-1\n"
        "[profile base]\naws_access_key_id = BASEKEY\naws_secret_access_key = base-secret\n"
    )
    return {"AWS_CONFIG_FILE": str(folder / "config"), "AWS_PROFILE": "reader", "AWS_ENDPOINT_URL_STS": endpoint}


def container(folder: Path, endpoint: str) -> dict[str, str]:
    return {
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{endpoint}/v2/credentials/an-id",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN": "the-container-token",
    }


def instance(folder: Path, endpoint: str) -> dict[str, str]:
    return {"AWS_EC2_METADATA_SERVICE_ENDPOINT": endpoint, "AWS_EC2_METADATA_DISABLED": "false"}


def sso(folder: Path, endpoint: str) -> dict[str, str]:
    cache = folder / ".aws" / "sso" / "cache"
    cache.mkdir(parents=True)
    signed_in = {"accessToken": "the-sign-in", "expiresAt": iso(time.time() + LIFETIME_S), "startUrl": START_URL}
    name = hashlib.sha1(START_URL.encode(), usedforsecurity=False).hexdigest()
    (cache / f"{name}.json").write_text(json.dumps(signed_in))
    (folder / "config").write_text(
        f"[profile reader]\nsso_start_url = {START_URL}\nsso_region = us-east-1\nsso_account_id = 123456789012\n"
        "sso_role_name = reader\nregion = us-east-1\n"
    )
    return {"AWS_CONFIG_FILE": str(folder / "config"), "AWS_PROFILE": "reader", "AWS_ENDPOINT_URL_SSO": endpoint}


SERVICES: dict[str, tuple[Callable[[Giver], Answer], Callable[[Path, str], dict[str, str]]]] = {
    "web identity": (token_service, web_identity),
    "assumed role": (token_service, assume_role),
    "container metadata": (container_service, container),
    "instance metadata": (instance_service, instance),
    "SSO": (sso_portal, sso),
}
