// Photos as people give them: chosen, dropped, pasted, from the camera, or of the samples.

const MIN_SIDE = 16; // as cats.core.images: one pixel for each cell
const MAX_PIXELS = 89_478_485;
const SHOWN_SIDE = 2048;

/** Decode a photo upright; throws an Error that says what is wrong with it. */
export async function readPhoto(blob, name) {
  let bitmap;
  try {
    // Without colour management and premultiplication: the pixels as they are in the file, as Pillow reads them.
    bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    throw new Error(`${name} is not an image that this browser reads`);
  }
  const size = [bitmap.width, bitmap.height];
  if (Math.min(...size) < MIN_SIDE) throw new Error(`${name} is ${size.join(" x ")}: at least 16 x 16 pixels are needed`);
  if (size[0] * size[1] > MAX_PIXELS) throw new Error(`${name} has over 89 megapixels: make it smaller first`);
  return { bitmap, blob, name, size, image: shown(bitmap) };
}

/** What is drawn: laid over white, and of large photos a smaller copy, which is drawn faster. */
function shown(bitmap) {
  const scale = Math.min(1, SHOWN_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(Math.round(bitmap.width * scale), 1);
  canvas.height = Math.max(Math.round(bitmap.height * scale), 1);
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas;
}

/** Call `take(side, blob, name)` with every photo that is chosen, dropped, pasted or shot. `next()` names a side. */
export function listen(take, next) {
  for (const side of ["a", "b"]) {
    const input = document.getElementById(`file-${side}`);
    input.addEventListener("change", () => {
      if (input.files[0]) take(side, input.files[0], input.files[0].name);
      input.value = ""; // so that the same file can be chosen again
    });
    listenCamera(document.getElementById(`camera-${side}`), (blob) => take(side, blob, "camera.png"));
  }
  addEventListener("dragover", (event) => {
    event.preventDefault();
    mark(event.target);
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) mark(null);
  });
  addEventListener("drop", (event) => {
    event.preventDefault();
    mark(null);
    const side = event.target.closest?.("#photo-a, #photo-b")?.id.slice(-1);
    takeFiles(event.dataTransfer.files, take, side ?? next());
  });
  addEventListener("paste", (event) => takeFiles(event.clipboardData.files, take, next()));
}

/** The first photo goes to the side, a second one to the other side. */
function takeFiles(files, take, side) {
  const photos = [...files].filter((file) => file.type.startsWith("image/"));
  photos.slice(0, 2).forEach((file, index) => take(index ? (side === "a" ? "b" : "a") : side, file, file.name));
}

function mark(target) {
  for (const side of ["a", "b"]) {
    const photo = document.getElementById(`photo-${side}`);
    photo.classList.toggle("over", Boolean(target && photo.contains(target)));
  }
}

function listenCamera(button, take) {
  const dialog = document.getElementById("camera");
  const video = document.getElementById("video");
  button.hidden = !navigator.mediaDevices?.getUserMedia;
  button.addEventListener("click", async () => {
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1280 } } });
    } catch (error) {
      button.title = `The camera cannot be used: ${error.message}`;
      button.textContent = "No camera";
      button.disabled = true;
      return;
    }
    video.srcObject = stream;
    document.getElementById("shoot").onclick = () => {
      const canvas = document.createElement("canvas");
      [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
      canvas.getContext("2d").drawImage(video, 0, 0);
      canvas.toBlob((blob) => take(blob), "image/png");
      dialog.close();
    };
    document.getElementById("camera-close").onclick = () => dialog.close();
    dialog.onclose = () => {
      for (const track of stream.getTracks()) track.stop();
      video.srcObject = null;
    };
    dialog.showModal();
  });
}
