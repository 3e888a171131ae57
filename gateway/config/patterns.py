"""The shapes of names in a configuration, and how each is said to a person."""

from __future__ import annotations

ID_PATTERN = r"^(?!\.{1,2}\Z)[A-Za-z0-9._-]{1,64}\Z"  # a dot or two would be a folder in the admin port's routes
HOST_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,252}\Z|^[0-9A-Fa-f.]*:[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*\Z"
ORIGIN_PATTERN = r"^(\*|[a-z][a-z0-9+.-]*://[A-Za-z0-9*._:\[\]-]+)\Z"
KEEP_ALIVE_PATTERN = r"^-?([0-9]+(\.[0-9]+)?|([0-9]+(\.[0-9]+)?(ns|us|ms|s|m|h))+)\Z"
ENV_NAME_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]*\Z"
COLLECTOR_PATTERN = r"^https?://[^\s@/?#]+(/[^\s?#]*)?\Z"
DNS_NAME_PATTERN = r"^_?[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?(\._?[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?)*\.?\Z"
LABEL_PATTERN = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z"
PATTERN_WORDS = {
    ID_PATTERN: "up to 64 letters, digits, dots, dashes and underscores, other than . and ..",
    HOST_PATTERN: "a host name or IP address without a port",
    ORIGIN_PATTERN: "an origin: scheme://host[:port], for instance https://chat.example",
    KEEP_ALIVE_PATTERN: "a duration as Ollama writes it, for instance -1, 0, 30s or 1h30m",
    ENV_NAME_PATTERN: "the name of an environment variable",
    DNS_NAME_PATTERN: "a name in the DNS, for instance ollama.default.svc.cluster.local",
    LABEL_PATTERN: "a name of Kubernetes: lower-case letters, digits and dashes",
    COLLECTOR_PATTERN: "http://host:port or https://host:port, with a path or without",
}
