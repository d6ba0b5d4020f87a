# SPDX-License-Identifier: Apache-2.0
"""What is sampled, under which conditions, and who judges it: from a config."""
