"""``OLLAMA_HOST`` in all of Ollama's spellings."""

from __future__ import annotations

import pytest

from corral.gateway.config.ollama_host import parse_ollama_host


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("1.2.3.4", "1.2.3.4:11434"),
        (":1234", "0.0.0.0:1234"),
        ("1.2.3.4:1234", "1.2.3.4:1234"),
        ("0.0.0.0", "0.0.0.0:11434"),
        ("example.com", "example.com:11434"),
        ("example.com:1234", "example.com:1234"),
        ("localhost:0", "localhost:0"),
        (":0", "0.0.0.0:0"),
        ("a:66000", "a:11434"),
        ("a:-1", "a:11434"),
        ("a:x", "a:11434"),
        ("a:", "a:11434"),
        ("[::1]", "[::1]:11434"),
        ("[::]", "[::]:11434"),
        ("::1", "[::1]:11434"),
        ("::1:5", "[::1:5]:11434"),
        ("[::1]:1337", "[::1]:1337"),
        ("http://1.2.3.4", "1.2.3.4:80"),
        ("http://1.2.3.4:4321", "1.2.3.4:4321"),
        ("http://[::1]:4321/", "[::1]:4321"),
        ("https://1.2.3.4", "1.2.3.4:443"),
        ("https://example.com/ollama", "example.com:443"),
        ("https://example.com:66000", "example.com:443"),
        ("http://", "127.0.0.1:80"),
        ("example.com/ollama", "example.com:11434"),
    ],
)
def test_it_is_read_as_ollamas_server_reads_it(text: str, wanted: str) -> None:
    assert str(parse_ollama_host(text)) == wanted


@pytest.mark.parametrize("text", ["a b", "gpü:80", "-a:1", "1.2.3:80"])
def test_a_host_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not|xn--"):
        parse_ollama_host(text)
