"""Follow the points of a photo through the frames of a camera or video: python examples/opencv_loop.py a.jpg [video]"""

import sys

import cv2

from cats.assets import asset
from cats.runtime import Matcher

photo = sys.argv[1] if len(sys.argv) > 1 else str(asset("astronaut.jpg"))
source = sys.argv[2] if len(sys.argv) > 2 else str(asset("grace_hopper.jpg"))  # a file, or "0" for a camera
points = [[203, 101], [224, 146]]

matcher = Matcher(asset("cats-tiny.onnx"))
video = cv2.VideoCapture(int(source) if source.isdecimal() else source)
while True:
    there, frame = video.read()
    if not there:
        break
    match = matcher.match(photo, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))  # OpenCV's pixels are B, G, R
    for x, y in match.transfer(points):
        cv2.circle(frame, (round(x), round(y)), 6, (0, 200, 255), -1)
    print("frame:", ", ".join(f"({x:.0f}, {y:.0f})" for x, y in match.transfer(points)))
