"""One computer acts for a fleet: a server that gives robots seats at a bundle's policy, and its client.

``policy.proto`` is the protocol, ``messages.py`` its messages; ``rows.py`` what computes, ``batching.py`` when,
``seats.py`` a seat as a policy's runtime, ``sessions.py`` whose it is, ``server.py`` with ``streams.py`` the service,
``client.py`` :class:`~lram_export.serving.client.RemotePolicy`, ``connection.py`` with ``stream.py`` its way there.
Transport is gRPC; the extra `serve` installs it, and without it nothing here can be imported.
"""

from importlib.util import find_spec

from lram_export.errors import UsageError

for _package, _module in (("grpcio", "grpc"), ("protobuf", "google"), ("protobuf", "google.protobuf")):
    if find_spec(_module) is None:
        raise UsageError(
            f"serving needs the package '{_package}', which is not installed. "
            f"Install it with: pip install 'lram-export[serve]'"
        )
