"""Which of NVIDIA's Xid codes end the process on that GPU, and in what words.

Only codes after which no process on the GPU can be trusted to go on are here: by NVIDIA's catalogue, those whose
immediate action is to reset the GPU or the machine, and those that have ended the GPU's work for every process on it.
Faults of one program (13, 31, 43, 45, 69), corrected errors (63, 92), and notes (154) are left to Ollama: it restarts
a runner that died of one, and its other models go on.
"""

from __future__ import annotations

from typing import Final

CRITICAL_XIDS: Final[dict[int, str]] = {
    46: "GPU stopped processing",
    48: "double-bit memory error",
    62: "power management unit halted",
    64: "memory row remapping failed",
    74: "NVLink error",
    79: "fell off the bus",
    94: "contained memory error",
    95: "uncontained memory error",
    109: "context switch timed out",
    110: "security fault",
    119: "GPU system processor did not answer",
    120: "GPU system processor failed",
    136: "link training failed",
    140: "unrecovered memory error",
    143: "initialisation failed",
}

LOST_XIDS: Final = frozenset({79})
"""After these, requests in flight have no hope."""
