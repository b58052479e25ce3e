// What TensorBoard loads into a frame of its own: it puts the page into that frame.
export function render() {
  document.body.style.margin = 0;
  const frame = document.createElement("iframe");
  frame.src = "page.html";
  frame.title = "Profiles";
  frame.style = "border: 0; width: 100%; height: 100vh; display: block";
  document.body.append(frame);
}
