# SPDX-License-Identifier: Apache-2.0
"""Stable Diffusion 3 and 3.5: a flow in latents, and what its prompts say."""
