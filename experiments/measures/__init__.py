# SPDX-License-Identifier: Apache-2.0
"""How far samples are from the target, how good they are, what they cost."""
