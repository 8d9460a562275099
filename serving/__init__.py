"""Matching for people who write no code: a page in the browser, and what stands behind a port.

``page/`` holds the modules of the page that need a matcher; what shows a match lies in ``runtime/page/``.
"""
