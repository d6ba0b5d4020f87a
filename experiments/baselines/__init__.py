# SPDX-License-Identifier: Apache-2.0
"""Every other method on the same problem, within the same budget."""
