# SPDX-License-Identifier: Apache-2.0
"""What any long work needs: loop, keys, logs, signals, files and endings."""
