# SPDX-License-Identifier: Apache-2.0
"""Stable Diffusion 1.x and 2.x in Flax: load it, control it, give it back."""
