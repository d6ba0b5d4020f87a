# SPDX-License-Identifier: Apache-2.0
"""What a reader sees: tables, figures, the report."""
