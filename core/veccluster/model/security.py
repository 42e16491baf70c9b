"""Who may talk to a cluster, and how."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from veccluster.model.names import AS_SET, ObjectName, SecureUrl, unique
from veccluster.model.rules import Part, Rule


class Tls(Part):
    """TLS on every port."""

    enabled: bool = False
    """Whether every port speaks TLS."""
    secret_name: ObjectName | None = None
    """Secret with tls.crt, tls.key and ca.crt; certificates are made and renewed by the operator when left out."""


class Jwt(Part):
    """Which tokens are believed."""

    issuer: SecureUrl
    """Who must have signed: the token's "iss"."""
    audience: Annotated[str, Field(min_length=1, max_length=256)]
    """For whom: the token's "aud"."""
    jwks_url: Annotated[SecureUrl, Field(alias="jwksURL")]
    """Where the issuer's keys are."""


class Auth(Part):
    """How clients prove who they are."""

    rules = (
        Rule(
            "secretName",
            "must be given when method is basic: the Secret that holds the users",
            "self.method != 'basic' || has(self.secretName)",
            lambda a: a.method != "basic" or a.secret_name is not None,
        ),
        Rule(
            "secretName",
            "is used only when method is basic, but method is {method}; leave it out",
            "self.method == 'basic' || !has(self.secretName)",
            lambda a: a.method == "basic" or a.secret_name is None,
        ),
        Rule(
            "jwt",
            "must be given when method is jwt",
            "self.method != 'jwt' || has(self.jwt)",
            lambda a: a.method != "jwt" or a.jwt is not None,
        ),
        Rule(
            "jwt",
            "is used only when method is jwt, but method is {method}; leave it out",
            "self.method == 'jwt' || !has(self.jwt)",
            lambda a: a.method == "jwt" or a.jwt is None,
        ),
    )

    method: Literal["none", "basic", "jwt", "mtls"] = "none"
    """"none" lets everybody in; "basic" name and password; "jwt" signed tokens; "mtls" client certificates."""
    secret_name: ObjectName | None = None
    """With "basic": Secret whose keys are user names and whose values are bcrypt hashes."""
    jwt: Jwt | None = None
    """With "jwt": which tokens are believed."""


class Grant(Part):
    """What some may do."""

    subjects: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=256)], ...],
        Field(min_length=1, max_length=64, json_schema_extra=AS_SET),
        AfterValidator(unique),
    ]
    """Who: names as authentication gives them."""
    collections: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=64)], ...],
        Field(min_length=1, max_length=64, json_schema_extra=AS_SET),
        AfterValidator(unique),
    ]
    """Which collections; a * at the end stands for any ending."""
    actions: Annotated[
        tuple[Literal["read", "write", "admin"], ...],
        Field(min_length=1, max_length=3, json_schema_extra=AS_SET),
        AfterValidator(unique),
    ]
    """What: "read" searches and gets, "write" upserts and deletes, "admin" creates and deletes collections."""


class Acl(Part):
    """Who may do what; who is granted nothing may do nothing."""

    grants: Annotated[tuple[Grant, ...], Field(max_length=128)] = ()
    """All that is allowed."""


class Security(Part):
    """Who may talk to the cluster, and how."""

    rules = (
        Rule(
            "auth.method",
            "must be something else than mtls while tls.enabled is false; set tls.enabled to true",
            "self.auth.method != 'mtls' || self.tls.enabled",
            lambda s: s.auth.method != "mtls" or s.tls.enabled,
        ),
        Rule(
            "acl",
            "needs to know who asks, but auth.method is none; set auth.method or leave acl out",
            "!has(self.acl) || self.auth.method != 'none'",
            lambda s: s.acl is None or s.auth.method != "none",
        ),
    )

    tls: Tls = Tls()
    """TLS on every port."""
    auth: Auth = Auth()
    """How clients prove who they are."""
    acl: Acl | None = None
    """Who may do what; everybody who is let in may do everything when left out."""
