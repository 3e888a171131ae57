"""The laboratory: Corral's scheduler and its rivals, in virtual time, against emulated GPUs."""
