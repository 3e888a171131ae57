"""The policy laboratory: the project's scheduler and its rivals, in virtual time, against emulated GPUs and traces."""
