"""Say why etcd does not let us in, in words that name the file to be put right.

Whoever runs the cluster wrote those files, or the Secret that they are mounted from; what TLS says of them, nobody
did.
"""

from veccluster_etcd.config import EtcdConfig

_UNTRUSTED = ("CERTIFICATE_VERIFY_FAILED",)
_OTHER_HOST = ("Hostname Verification Check failed", "is not in peer certificate")
_CLIENT_UNKNOWN = ("ALERT_BAD_CERTIFICATE", "ALERT_UNKNOWN_CA", "ALERT_CERTIFICATE_", "ALERT_UNSUPPORTED_CERTIFICATE")
_NO_PEM = ("Failed to create security handshaker",)


def why_not(details: str, config: EtcdConfig) -> str | None:
    """What is wrong when a connection failed with `details`; None when it is nothing about who we are."""

    def says(signs: tuple[str, ...]) -> bool:
        return any(sign in details for sign in signs)

    authority = f"the authority in {config.ca_file}" if config.ca_file else "any of the usual authorities"
    if says(_UNTRUSTED):
        return f"etcd's certificate was not issued by {authority}, or is not valid now"
    if says(_OTHER_HOST):
        return f"etcd's certificate does not name its host, one of {', '.join(config.addresses)}"
    if says(_CLIENT_UNKNOWN):
        if config.cert_file:
            return f"etcd does not accept the certificate in {config.cert_file}"
        return f"etcd wants its clients to have a certificate, and there is none beside {config.ca_file or 'ours'}"
    if says(_NO_PEM):
        files = [str(f) for f in (config.ca_file, config.cert_file, config.key_file) if f]
        return f"{', '.join(files) or 'the certificates'} must be PEM, and the key that of the certificate"
    return None


def wrong_login(config: EtcdConfig) -> str:
    """What to look at when etcd does not know the user or the password."""
    return f"etcd does not accept the user name in {config.username_file} with the password in {config.password_file}"
